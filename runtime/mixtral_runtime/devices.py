"""What an engine can run on, by the names that the commands take: memory, bandwidth and arithmetic."""

from dataclasses import dataclass, replace

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
    """Raises InvalidArgument where FP8 weights or an FP8 KV cache cannot be used."""
    if not supports_fp8(device):
        raise InvalidArgument(
            f"{device.name} is {device.architecture.upper()}, FP8 needs SM{FP8_ARCHITECTURE} or later (h100, h200); "
            f"on this GPU use --precision int8"
        )


def available_memory() -> int:
    """Bytes that this machine can give to a new program without swapping."""
    return int(psutil.virtual_memory().available)


def _this_cpu() -> Device:
    return Device("cpu", "cpu", int(psutil.virtual_memory().total))


def _present_gpu() -> Device:
    properties = torch.cuda.get_device_properties()
    architecture = f"sm{properties.major}{properties.minor}"
    known = next((card for card in CARDS.values() if card.name.upper() in properties.name.upper()), None)
    memory = int(properties.total_memory)
    if known is not None:
        return replace(known, memory=memory)
    return Device(properties.name, architecture, memory)
