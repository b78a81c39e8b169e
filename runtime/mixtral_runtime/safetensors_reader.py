"""Lazy reading of one safetensors file through a memory map."""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats.base import TensorSpec

# The names that safetensors headers use.
HEADER_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class SafetensorsFile:
    """Raises CheckpointError when the file is missing, cut off or not safetensors at all."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut off ({error})") from error
        self._names = frozenset(self._file.keys())

    def names(self) -> frozenset[str]:
        return self._names

    def spec(self, name: str) -> TensorSpec:
        """From the header alone."""
        part = self._file.get_slice(name)
        dtype = HEADER_DTYPES.get(part.get_dtype())
        if dtype is None:
            raise CheckpointError(f"{self.path}: {name} has dtype {part.get_dtype()}, which is not supported")
        return TensorSpec(name, tuple(part.get_shape()), dtype)

    def tensor(self, name: str) -> Tensor:
        """A view of the mapped file: nothing is read before it is used, and nothing is copied."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """In row-major order; no copy for a contiguous tensor on the CPU."""
    data: memoryview = tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data
    return data
