"""Where the GPU kernels serve: chosen once, by what is installed or by an environment variable."""

import functools
import importlib.util
import logging
import os
from typing import Literal, cast, get_args

import torch

from mixtral_runtime.errors import InvalidArgument

VARIABLE = "MIXTRAL_GPU_KERNELS"
GpuKernels = Literal["auto", "none", "interpret"]
OLDEST_SM = 8  # bfloat16 in the matrix units, and asynchronous copies

logger = logging.getLogger(__name__)


@functools.cache
def gpu_kernels() -> GpuKernels:
    """`auto`: tensors on a GPU that is new enough, where Triton can be imported. `none`: plain PyTorch everywhere.
    `interpret`: tensors on the CPU, in Triton's interpreter; slow, for tests.

    Raises InvalidArgument for another value of MIXTRAL_GPU_KERNELS, or when Triton is asked for and is not there.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in get_args(GpuKernels):
        raise InvalidArgument(f"{VARIABLE} is {asked}, there are {', '.join(get_args(GpuKernels))}")
    if asked == "interpret":
        if not _has_triton():
            raise InvalidArgument(f"{VARIABLE} is interpret, but Triton (the language) is not installed")
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
    return cast(GpuKernels, asked)


def gpu_kernels_serve(device: torch.device) -> bool:
    """Whether tensors on this device are multiplied by kernels of `kernels.gpu`."""
    if gpu_kernels() == "interpret":
        return device.type == "cpu"
    return device.type == "cuda" and gpu_kernels() == "auto" and _serves(device)


@functools.cache
def _serves(device: torch.device) -> bool:
    """Says so in the log where plain PyTorch takes over, because it is several times slower."""
    if not _has_triton():
        logger.warning("Triton (the language) is not installed: the GPU runs plain PyTorch, several times slower")
        return False
    if (capability := torch.cuda.get_device_capability(device)) < (OLDEST_SM, 0):
        logger.warning("the GPU is SM%d%d, the kernels need SM%d0: it runs plain PyTorch", *capability, OLDEST_SM)
        return False
    return True


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
