"""Writing a safetensors file tensor by tensor, in any order and in slices, without holding it in memory.

Format: https://huggingface.co/docs/safetensors (8 bytes header length, little endian; a JSON header padded with spaces;
the tensors' bytes without holes).
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from mixtral_runtime.formats.base import TensorSpec
from mixtral_runtime.safetensors_reader import HEADER_DTYPES

ALIGNMENT = 64  # of the first tensor in the file: one cache line, and enough for every vector load
DTYPE_NAMES = {dtype: name for name, dtype in HEADER_DTYPES.items()}


class SafetensorsWriter:
    """The header, which needs every name, shape and dtype, is written at once; then each byte has its known place.

    `write` may come in any order: a writer that continues an interrupted file needs only to skip what is there.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        # Wider elements first: every tensor is then aligned to its own element size without holes.
        ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
        self._specs = {spec.name: spec for spec in ordered}
        header, self._offsets, size = _layout(ordered)
        self._missing = {spec.name: spec.shape[0] for spec in ordered}  # slices along the first dimension
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        _write_at(self._file, memoryview(header), 0)
        os.truncate(self._file, size)

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """A whole tensor, or the slices from `start` on along its first dimension."""
        spec = self._specs[name]
        assert tensor.dtype == spec.dtype, (name, tensor.dtype)
        assert tuple(tensor.shape[1:]) == spec.shape[1:], (name, tensor.shape)
        assert start + tensor.shape[0] <= spec.shape[0], (name, start)
        data = tensor.contiguous().cpu().view(-1).view(torch.uint8)
        slice_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        _write_at(self._file, data.numpy().data, self._offsets[name] + start * slice_bytes)
        self._missing[name] -= tensor.shape[0]

    def close(self) -> None:
        """Flushes to disk. Everything must have been written."""
        missing = [name for name, slices in self._missing.items() if slices]
        assert not missing, missing
        os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            os.close(self._file)


def _layout(specs: list[TensorSpec]) -> tuple[bytes, dict[str, int], int]:
    """The header's bytes, each tensor's place in the file, and the file's size."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, starts = 0, {}
    for spec in specs:
        end = offset + math.prod(spec.shape) * spec.dtype.itemsize
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        starts[spec.name] = offset
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    first = len(text) + 8
    return len(text).to_bytes(8, "little") + text, {name: first + at for name, at in starts.items()}, first + offset


def _write_at(file: int, data: memoryview, offset: int) -> None:
    while data:  # one call writes 2 GiB at most
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
