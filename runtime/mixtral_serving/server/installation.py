"""Where tritonserver is: installed (the NGC image) or inside the nvidia-pytriton wheel of this environment."""

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from mixtral_runtime.errors import MixtralError

WHEEL_GLIBC = (2, 35)  # the wheel's server is built on Ubuntu 22.04


class ServerNotFound(MixtralError):
    """This machine has no tritonserver that can run; the sentence says how to get one."""

    code = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Installation:
    """server: the program. backends: the folder for --backend-directory, None for the server's own. library_path: put
    before LD_LIBRARY_PATH."""

    server: Path
    backends: Path | None
    library_path: tuple[Path, ...]


def find_installation(work_dir: Path) -> Installation:
    """An installed tritonserver if there is one, else the wheel's, whose python backend is laid out under `work_dir`.

    Raises ServerNotFound with the reason and the fix.
    """
    if installed := shutil.which("tritonserver"):
        return Installation(Path(installed), None, ())
    if reason := unsupported_platform():
        raise ServerNotFound(reason)
    root = _wheel_root()
    return Installation(
        server=root / "bin" / "tritonserver",
        backends=_lay_out_backend(root, work_dir),
        library_path=(root.parent.parent / "nvidia_pytriton.libs", _libpython_folder()),
    )


def unsupported_platform() -> str | None:
    """Why the wheel's server cannot run on this machine, or None."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        return f"Triton's wheel is for Linux on x86-64, this is {system} on {machine}; use the container instead"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < WHEEL_GLIBC:
        needed = ".".join(map(str, WHEEL_GLIBC))
        return f"Triton's wheel needs glibc {needed}, this system has {name or 'none'} {version}; use the container"
    return None


def _wheel_root() -> Path:
    spec = importlib.util.find_spec("pytriton")  # found, not imported: importing it starts threads
    if spec is None or spec.origin is None:
        raise ServerNotFound(
            "there is no tritonserver: install the extra `server` of this package or use the container"
        )
    return Path(spec.origin).parent / "tritonserver"


def _lay_out_backend(root: Path, work_dir: Path) -> Path:
    """The wheel keeps one stub per Python version apart from the backend; the server wants them together."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerNotFound(f"Triton's wheel has no stub for Python {version}; use Python 3.11 or 3.12")
    backends = work_dir / "backends"
    shutil.copytree(root / "backends" / "python", backends / "python")
    shutil.copy2(stub, backends / "python" / stub.name)
    return backends


def _libpython_folder() -> Path:
    """Raises ServerNotFound when this Python was built without its shared library, which the stub loads."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib"), "/usr/lib/x86_64-linux-gnu"]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    package = name.split(".so")[0]
    raise ServerNotFound(
        f"this Python ({sys.base_prefix}) has no {name}, which Triton's Python backend loads; install it "
        f"(Debian and Ubuntu: apt-get install {package}) or use a Python built with --enable-shared"
    )
