#!/usr/bin/env bash
# Builds llama-cpp-python from source into the environment of the given python: install.sh PYTHON. Minutes on two cores.
#
# gcc before 13 miscompiles the loading of AMX tiles, and llama.cpp then crashes on processors that have AMX. So clang or
# a newer gcc is taken where there is one; with an older gcc AMX is switched off, and llama.cpp may be slower than it
# could be: the result says which by AMX_INT8 in `build`. CC and CXX, when set, are taken as they are.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1

if [ -z "${CC:-}${CXX:-}" ]; then
  for version in "" -19 -18 -17 -16 -15; do
    if command -v "clang$version" "clang++$version" >/dev/null && [ "$("clang$version" -dumpversion | cut -d. -f1)" -ge 15 ]
    then export CC=clang$version CXX=clang++$version; break; fi
  done
fi
if [ -z "${CC:-}${CXX:-}" ]; then
  for version in -15 -14 -13; do
    if command -v "gcc$version" "g++$version" >/dev/null; then export CC=gcc$version CXX=g++$version; break; fi
  done
fi
if [ -z "${CC:-}${CXX:-}" ] && [ "$(gcc -dumpversion | cut -d. -f1)" -lt 13 ]; then
  export CFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" CXXFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  echo "llama.cpp without AMX: neither clang 15 nor gcc 13 is here" >&2
fi
echo "building llama.cpp with ${CC:-gcc} (some minutes)" >&2
# No cache: a wheel that another compiler built would be taken.
CMAKE_ARGS="${CMAKE_ARGS:-} -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF" \
  "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --editable ".[bench-peers]"
# The libraries do not say what built them, so that results could not.
"$python" - "$("${CC:-gcc}" --version | head -1)" <<'END'
import importlib.util, pathlib, sys
found = importlib.util.find_spec("llama_cpp")
pathlib.Path(found.origin).with_name("compiler.txt").write_text(sys.argv[1] + "\n")
END
