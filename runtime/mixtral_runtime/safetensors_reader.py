"""Lazy reading of one safetensors file through a memory map."""

import json
import mmap
import sys
from math import prod
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
# Without it the system sets memory aside for writing to all of the map, which fails for a model larger than memory.
_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class SafetensorsFile:
    """Raises CheckpointError when the file is missing, cut off or not safetensors at all."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="np"))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut off ({error})") from error
        self._names = frozenset(self._file.keys())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            protection = mmap.PROT_READ | mmap.PROT_WRITE  # private: PyTorch wants it writable, the file stays as it is
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=protection)
        self._starts = {name: 8 + length + header[name]["data_offsets"][0] for name in self._names}  # bytes

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
        spec = self.spec(name)
        count = prod(spec.shape)
        if count == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        flat = torch.frombuffer(self._map, dtype=spec.dtype, count=count, offset=self._starts[name])
        return flat.reshape(spec.shape)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """In row-major order; no copy for a contiguous tensor on the CPU."""
    data: memoryview = tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data
    return data
