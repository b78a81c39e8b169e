"""The kernels' shared library: compiled by PyTorch's extension loader, kept in a folder of the user's, loaded once.

A library's name has a hash of everything that it was made of. So a finished file is right, and one is never replaced.
"""

import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "cpu"
CACHE_VARIABLE = "MIXTRAL_KERNEL_CACHE"
# No -march: functions name the instructions they use, so that one library fits every CPU. Products and sums stay apart
# unless written as one: contraction would give the same sum other bits in a loop's remainder than in its vectors.
FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
INSTALL = "install g++ (Debian and Ubuntu: apt-get install g++)"

logger = logging.getLogger(__name__)


@functools.cache
def load_kernels() -> str | None:
    """Registers `torch.ops.mixtral_cpu`, after compiling it if nobody has. What is in the way, or None when done; said
    in the log once."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the kernels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    library = cache_folder() / f"{_key()}.so"
    try:
        if library.is_file():
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        else:
            _build(library)
    except (OSError, RuntimeError) as error:
        logger.debug("the compiler's output: %s", error)
        said = [line for line in str(error).splitlines() if "error: " in line] or str(error).splitlines()
        problem = f"the CPU kernels could not be compiled ({said[0].strip()})"
        logger.warning("%s; plain PyTorch is used, which is slower", problem)
        return problem
    return None


def cache_folder() -> Path:
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixtral-triton" / "kernels"


def _key() -> str:
    parts = hashlib.sha256(f"{FLAGS} {torch.__version__}".encode())
    for path in sorted(SOURCES.iterdir()):
        parts.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return parts.hexdigest()[:20]


def _build(library: Path) -> None:
    """Compiles, loads and leaves `library`. One process compiles, the others wait for it; what one left that was killed
    is removed by the next. Where the folder cannot be written, the library serves this process alone."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"there is no compiler {compiler}; {INSTALL}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        lock = library.with_suffix(".lock").open("w")
    except OSError as error:
        logger.warning("compiled CPU kernels cannot be kept (%s); set %s to a writable folder", error, CACHE_VARIABLE)
        with tempfile.TemporaryDirectory(prefix="mixtral-kernels-") as folder:
            _compile(Path(folder))
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.is_file():
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            return
        for leftover in library.parent.glob(f"{library.stem}.building-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{library.stem}.building-", dir=library.parent) as folder:
            os.replace(_compile(Path(folder)), library)


def _compile(folder: Path) -> Path:
    """The library compiled in `folder`, and loaded."""
    from torch.utils import cpp_extension  # slow to import, and needed once per machine

    logger.info("compiling the CPU kernels, once")
    with _ninja_on_path():
        cpp_extension.load(
            "mixtral_cpu",
            sorted(map(str, SOURCES.glob("*.cpp"))),
            extra_cflags=FLAGS,
            extra_ldflags=["-fopenmp"],  # libgomp is there already, PyTorch's own: one pool of threads
            build_directory=str(folder),
            is_python_module=False,
        )
    return folder / "mixtral_cpu.so"


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """The loader looks for `ninja` on the PATH, where it is not when the environment was not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, *_ninja_folders()])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _ninja_folders() -> list[str]:
    """Where the installed package put its program."""
    try:
        files = metadata.files("ninja") or []
    except metadata.PackageNotFoundError:
        return []
    return [str(Path(str(file.locate())).resolve().parent) for file in files if file.name == "ninja"]
