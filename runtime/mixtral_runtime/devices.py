"""What an engine can run on, by the names that the commands take: memory, bandwidth and arithmetic."""

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from mixtral_runtime.errors import InvalidArgument

GB = 10**9  # card memory and files are sold and listed in powers of ten
FP8_ARCHITECTURE = 89  # SM89 (Ada) is the first with FP8 arithmetic


@dataclass(frozen=True, slots=True)
class Device:
    """architecture: "cpu" or "smNN". memory: bytes that a plan may count on. bandwidth: of that memory in bytes per
    second, and flops: dense 16-bit multiplications and additions per second, both None where they are not known."""

    name: str
    architecture: str
    memory: int
    bandwidth: float | None = None
    flops: float | None = None

    @property
    def is_gpu(self) -> bool:
        return self.architecture != "cpu"

    @property
    def sm(self) -> int:
        """The architecture's number, 0 for a CPU."""
        return int(self.architecture.removeprefix("sm")) if self.is_gpu else 0


# Memory as sold: what the driver shows beyond it (6 % on an A100) pays for the driver's own. SXM modules; the H200's
# bandwidth is the one that copies reach, on paper it is 4.8 TB/s.
CARDS = {
    "a100": Device("a100", "sm80", 80 * GB, bandwidth=2.0e12, flops=312e12),
    "h100": Device("h100", "sm90", 80 * GB, bandwidth=3.35e12, flops=989e12),
    "h200": Device("h200", "sm90", 141 * GB, bandwidth=4.25e12, flops=989e12),
}
# The driver's names of just these; others that are called alike (of 40 GB, PCIe, NVL, GH200) have another memory.
DRIVER_NAMES = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
DEVICE_NAMES = ("auto", "cpu", *CARDS)


def find_device(name: str, memory_gb: float | None = None) -> Device:
    """name: one of DEVICE_NAMES; auto is this machine's GPU or else its CPU. memory_gb replaces the memory, in 10^9
    bytes. Raises InvalidArgument for another name."""
    if name not in DEVICE_NAMES:
        raise InvalidArgument(f"the GPU is {name}, it must be one of {', '.join(DEVICE_NAMES)}")
    if name == "auto":
        device = _present_gpu() if torch.cuda.is_available() else _this_cpu()
    else:
        device = CARDS[name] if name in CARDS else _this_cpu()
    return device if memory_gb is None else replace(device, memory=int(memory_gb * GB))


def supports_fp8(device: Device) -> bool:
    """A CPU has no FP8 arithmetic either, but there the PyTorch runtime multiplies dequantised weights."""
    return not device.is_gpu or device.sm >= FP8_ARCHITECTURE


def check_fp8(device: Device) -> None:
    """Raises InvalidArgument where TensorRT-LLM cannot use FP8 weights or an FP8 KV cache. The PyTorch runtime uses
    both on every GPU: see `fp8_conversion`."""
    if not supports_fp8(device):
        raise InvalidArgument(
            f"{device.name} is {device.architecture.upper()}, FP8 needs SM{FP8_ARCHITECTURE} or later (h100, h200); "
            f"on this GPU use --precision int8, or --runtime pytorch, whose kernels convert"
        )


def fp8_conversion(device: Device) -> str | None:
    """What the user should know of FP8 weights or an FP8 KV cache in the PyTorch runtime on a card without FP8
    arithmetic; None where there is nothing to say."""
    if supports_fp8(device):
        return None
    return (
        f"{device.name} is {device.architecture.upper()} and has no FP8 arithmetic: the kernels of the PyTorch runtime "
        f"convert FP8 values to 16 bits, which saves memory but multiplies no faster; --precision int8 needs as little"
    )


def available_memory() -> int:
    """Bytes that this machine can give to a new program without swapping."""
    return int(psutil.virtual_memory().available)


def _this_cpu() -> Device:
    return Device("cpu", "cpu", int(psutil.virtual_memory().total))


def _present_gpu() -> Device:
    """The memory is the card's own, whatever is sold under its name."""
    properties = torch.cuda.get_device_properties()
    architecture = f"sm{properties.major}{properties.minor}"
    name, memory = str(properties.name), int(properties.total_memory)
    if name in DRIVER_NAMES:
        return replace(CARDS[DRIVER_NAMES[name]], memory=memory)
    return Device(name, architecture, memory, bandwidth=_paper_bandwidth(properties))


def _paper_bandwidth(properties: Any) -> float | None:
    """From the memory's clock and width, which only some versions of PyTorch tell: two transfers in a cycle."""
    kilohertz = getattr(properties, "memory_clock_rate", 0)
    bits = getattr(properties, "memory_bus_width", 0)
    return 2e3 * kilohertz * bits / 8 if kilohertz and bits else None
