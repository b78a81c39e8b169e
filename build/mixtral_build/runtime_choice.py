"""Which runtime an engine is built for: the one asked for, or the better one that works here."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from mixtral_build.trtllm_command import UNLISTED, check_combination
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device
from mixtral_runtime.errors import InvalidArgument

RUNTIMES = ("auto", "pytorch", "tensorrt-llm")


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision made for the user, and why."""

    value: str
    reason: str


def choose_runtime(runtime: str, config: CheckpointConfig, device: Device) -> Choice:
    """runtime: one of RUNTIMES. auto takes TensorRT-LLM where it is installed, a GPU is present, and it supports the
    precision on that GPU; else PyTorch."""
    if runtime != "auto":
        return Choice(runtime, "asked for")
    obstacle = _obstacle(config, device)
    if obstacle is None:
        return Choice("tensorrt-llm", f"it is installed, and it supports this precision on {device.name}")
    return Choice("pytorch", obstacle)


def describe_choice(gpu: str, device: Device) -> Choice:
    """gpu: what the user gave."""
    if gpu != "auto":
        return Choice(device.architecture, "asked for")
    return Choice(device.architecture, f"{device.name} is in this machine" if device.is_gpu else "no GPU here")


def _obstacle(config: CheckpointConfig, device: Device) -> str | None:
    if find_spec("tensorrt_llm") is None:
        return "TensorRT-LLM is not installed"
    if not torch.cuda.is_available():
        return "no GPU here"
    try:
        check_combination(config, device)
    except InvalidArgument as error:
        return str(error)
    algorithm = config.quantization.quant_algo
    return f"NVIDIA does not list {algorithm} for Mixtral" if algorithm in UNLISTED else None
