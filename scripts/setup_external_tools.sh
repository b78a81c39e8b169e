#!/usr/bin/env bash
# Finds the programs of others that tests/external checks our files with. A missing one is taken out of its Debian
# package into .tools/bin: nothing is installed, so no service of that package starts. Elsewhere it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin
missing=0

# need PACKAGE PROGRAM…: the programs, from PATH, from an earlier run or from that package.
need() {
  local package=$1 program
  shift
  for program; do
    PATH="$bin:$PATH" command -v "$program" >/dev/null || { take_from "$package" "$@" || missing=1; return 0; }
  done
}

take_from() {
  local package=$1 folder program
  shift
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "error: $* missing; install $package (Debian and Ubuntu: apt-get install $package; macOS: brew install $package)" >&2
    return 1
  fi
  echo "taking $* from the package $package" >&2
  folder=$(mktemp -d)
  if ! apt-cache show "$package" >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then apt-get -qq update >&2 || true; fi
  if ! (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2); then
    echo "error: the package $package cannot be had; run: apt-get update && apt-get install $package" >&2
    rm -rf "$folder"
    return 1
  fi
  dpkg-deb -x "$folder/$package"_*.deb "$folder/files"
  mkdir -p "$bin"
  for program; do mv "$folder/files/usr/bin/$program" "$bin/$program"; done
  rm -rf "$folder"
}

need prometheus prometheus promtool

exit "$missing"
