"""What a result must say of the GPU it was measured on."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from machine import describe

from mixtral_runtime.kernels.availability import gpu_kernels, gpu_kernels_serve

PACKAGES = ("torch", "triton", "transformers", "numpy")
ASKED = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory")


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """As `machine.describe`, with the card as the processor; on a CPU without the card's entries."""
    found: dict[str, Any] = dict(describe(tuple(filter(_installed, PACKAGES))))
    found["kernels"] = "triton" if gpu_kernels_serve(device) else f"plain ({gpu_kernels()})"
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "host_processor": found["processor"],
        "processor": properties.name,
        "gpu": properties.name,
        "architecture": f"sm{properties.major}{properties.minor}",
        "gpu_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        **_nvidia_smi(),
    }


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _nvidia_smi() -> dict[str, str]:
    """What the driver says of the first card; nothing where its program is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = text.splitlines()[0].split(", ") if text else []
    return dict(zip((name.replace(".", "_") for name in ASKED), values, strict=False))
