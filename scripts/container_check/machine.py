"""Facts about the machine and what is installed; read, never judged here."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("tensorrt_llm", "tensorrt", "torch", "transformers", "numpy", "openai", "nvidia-modelopt", "tritonclient")
IMAGE = Path("/opt/tritonserver")
QUERY_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory in MiB; capability as the driver writes it, such as "8.0"."""

    name: str
    memory_mib: int
    capability: str

    @property
    def sm(self) -> int:
        return int(self.capability.replace(".", ""))


@dataclass(frozen=True, slots=True)
class Machine:
    """image: NVIDIA's container version, such as "26.07", "unknown" inside an image that does not say, None outside.
    triton: the server's version. packages: of this Python, None where not installed. driver: the NVIDIA driver's
    version. sizes in bytes; memlock, stack: soft limits in bytes, None for unlimited."""

    image: str | None
    triton: str | None
    python: str
    packages: dict[str, str | None]
    driver: str | None
    gpus: tuple[Gpu, ...]
    shm_bytes: int
    memlock: int | None
    stack: int | None
    memory_bytes: int
    cores: int
    system: str


def look_around(image: Path = IMAGE) -> Machine:
    driver, gpus = _gpus()
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    return Machine(
        image=os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "unknown") if image.is_dir() else None,
        triton=_first_line(image / "TRITON_VERSION"),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        driver=driver,
        gpus=gpus,
        shm_bytes=shm.f_bavail * shm.f_frsize if shm else 0,
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        stack=_limit(resource.RLIMIT_STACK),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.machine()}",
    )


def parse_gpus(text: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's version and the GPUs, of `nvidia-smi --query-gpu=driver_version,memory.total,compute_cap,name
    --format=csv,noheader,nounits`."""
    driver, gpus = None, []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",", 3)]
        if len(parts) == 4 and parts[1].isdigit():
            driver = parts[0]
            gpus.append(Gpu(name=parts[3], memory_mib=int(parts[1]), capability=parts[2]))
    return driver, tuple(gpus)


def _gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    if (program := shutil.which("nvidia-smi")) is None:
        return None, ()
    query = [program, "--query-gpu=driver_version,memory.total,compute_cap,name", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None, ()
    return parse_gpus(found.stdout)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip().split("\n")[0] if path.is_file() else None


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft
