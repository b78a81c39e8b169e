"""What a result must say of the machine it was measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe(packages: tuple[str, ...]) -> dict[str, object]:
    """Processor, cores, memory in bytes, Python and the versions of `packages`."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def processor() -> str:
    """The processor's name with its widest vector extension, which decides the speed more than the name does."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = values.get("flags", "").split()
    widest = next((flag for flag in ("amx_int8", "avx512_vnni", "avx512f", "avx2") if flag in flags), "no AVX2")
    return f"{values.get('model name', platform.machine())}, {widest}"


def slug(text: str) -> str:
    """A folder name: lower-case letters, digits and single dashes."""
    kept = "".join(char if char.isalnum() else "-" for char in text.lower())
    return "-".join(part for part in kept.split("-") if part)
