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

# need_installed PACKAGE PROGRAM…: the same for programs that need their package's libraries and are no services.
need_installed() {
  local package=$1 program
  shift
  for program; do
    command -v "$program" >/dev/null && continue
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
      echo "error: $program missing; install $package (Debian and Ubuntu: sudo apt-get install $package)" >&2
      missing=1
      return 0
    fi
    echo "installing the package $package" >&2
    if ! apt-cache show "$package" >/dev/null 2>&1; then apt-get -qq update >&2 || true; fi
    apt-get -qq -y install --no-install-recommends "$package" >&2 ||
      { echo "error: the package $package cannot be had; run: apt-get update && apt-get install $package" >&2; missing=1; }
    return 0
  done
}

need prometheus prometheus promtool
need_installed chromium chromium
need_installed chromium-driver chromedriver

# The extra `external`: what drives the browser, and a client of others that docs/clients.md shows.
python=.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["external"])' |
  xargs "$python" -m pip --quiet --disable-pip-version-check install >&2 || missing=1

# need_environment PACKAGE==VERSION [PACKAGE==VERSION…]: a package whose dependencies are not ours, and what it lacks, in
# an environment of its own, .tools/PACKAGE-VERSION.
need_environment() {
  local folder
  folder=.tools/$(sed 's/\[.*\]//; s/==/-/' <<<"$1")
  [ -e "$folder/.ready" ] && return 0
  echo "installing $1 into $folder" >&2
  rm -rf "$folder"
  { "$python" -m venv "$folder" && "$folder/bin/python" -m pip --quiet --disable-pip-version-check install "$@" &&
    touch "$folder/.ready"; } >&2 || missing=1
}

need_environment openai==2.8.0                              # a client that is a year old, beside the pinned one
need_environment openai==1.109.1                            # what the image for TensorRT-LLM has
need_environment 'lm_eval[api]==0.4.13' transformers==5.23.0  # lm-evaluation-harness; its tokenizers need transformers
need_environment aiperf==0.13.0                             # NVIDIA's load generator, 1.2 GB

exit "$missing"
