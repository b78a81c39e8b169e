#!/usr/bin/env bash
# Makes the environment: setup_environment.sh VENV, or with '' for VENV installs into the active one (NVIDIA's image).
# PyTorch's CPU build is taken where there is no NVIDIA driver, or TORCH=cpu is set, and it can be reached, else the
# default build. EXTRAS: which of pyproject.toml's extras, instead of those that work here.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-}
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

if [ -z "$venv" ]; then
  # Nothing that is there may change, NVIDIA's torch, transformers and numpy least of all: every version is a
  # constraint. What is missing comes in our version, or else in one that goes with the rest, and our package without
  # its dependencies.
  image_pip() { python3 -m pip --quiet --disable-pip-version-check --no-cache-dir "$@"; }
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if ! [ -w "$packages" ]; then
    echo "error: $packages is not writable; run this as root, or use the image of \`make image\`, where it was done" >&2
    exit 1
  fi
  there=$(mktemp)
  trap 'rm -f "$there"' EXIT
  image_pip list --format=freeze --exclude-editable >"$there"  # `pip freeze` names no version of a local wheel
  mapfile -t missing < <(python3 scripts/missing_dependencies.py)
  if [ "${#missing[@]}" -gt 0 ]; then
    image_pip install --constraint "$there" "${missing[@]}" ||
      image_pip install --constraint "$there" "${missing[@]%%=*}"
  fi
  image_pip install --no-deps --editable .
  # Images from 26.03 on have an openai that is too old for their TensorRT-LLM, which cannot be imported with it. The
  # first one tried is the last of the same major version and needs nothing that the old one did not.
  sed -i '/^openai==/d' "$there"
  for openai in openai==1.109.1 openai; do
    if python3 scripts/openai_imports.py; then break; fi
    image_pip install --constraint "$there" --upgrade "$openai"
  done
  python3 scripts/openai_imports.py
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

echo "setting up $venv with $("$python" --version) (about 2.5 GB, once)" >&2
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
extras=dev,bench
torch=$(sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)
if [ "${TORCH:-}" = cpu ] || { [ "$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ]; }; then
  pip install "$torch+cpu" 2>/dev/null ||
    pip install "$torch" --index-url "$cpu_index" 2>/dev/null ||
    { echo "PyTorch's CPU build cannot be reached, taking the default one" >&2; pip install "$torch"; }
  # The default build for GPUs brings the Triton language of its own version.
  if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then extras+=,gpu-kernels; fi
fi
# The server's wheel exists for Linux on x86-64 alone; elsewhere the engine runs without it.
if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then extras+=,server; fi
pip install --editable ".[${EXTRAS:-$extras}]"
