#!/usr/bin/env bash
# Makes the environment: setup_environment.sh VENV, or without VENV installs into the active one (NVIDIA's image).
# PyTorch's CPU build is taken where there is no NVIDIA driver and it can be reached, else the default build.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

if [ -z "$venv" ]; then
  # NVIDIA's torch, transformers and numpy stay as they are: ours comes without dependencies, and what it needs beside
  # them may not change any version that is there.
  there=$(mktemp)
  python3 -m pip freeze --exclude-editable | grep '==' >"$there"
  python3 -m pip install --quiet --constraint "$there" click 'tritonclient[grpc]' jinja2 safetensors psutil
  python3 -m pip install --quiet --no-deps --editable .
  rm "$there"
  exit
fi

python=
for candidate in python3.11 python3.12; do
  # A name can exist and yet not run: version managers leave such shims.
  if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  case "$(uname -s)" in
    Darwin) get="brew install python@3.12" ;;
    Linux) if command -v apt-get >/dev/null; then
             version=3.12; apt-cache show python3.12 >/dev/null 2>&1 || version=3.11
             get="sudo apt-get install python$version python$version-venv libpython$version"
           elif command -v dnf >/dev/null; then get="sudo dnf install python3.12"
           else get="uv python install 3.12"; fi ;;
    *) get="uv python install 3.12" ;;
  esac
  echo "error: Python 3.11 or 3.12 with venv is needed; get it with: $get" >&2
  exit 1
fi

echo "setting up $venv with $("$python" --version) (about 1.5 GB, once)" >&2
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
torch=$(sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)
if [ "$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ]; then
  pip install "$torch+cpu" 2>/dev/null ||
    pip install "$torch" --index-url "$cpu_index" 2>/dev/null ||
    { echo "PyTorch's CPU build cannot be reached, taking the default one" >&2; pip install "$torch"; }
fi
extras=dev,bench
# Triton's wheel exists for Linux on x86-64 alone; elsewhere the engine runs without the server.
if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then extras=dev,bench,server; fi
pip install --editable ".[$extras]"
