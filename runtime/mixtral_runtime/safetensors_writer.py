"""Writing a safetensors file tensor by tensor, in any order and in slices, without holding it in memory.

Format: https://huggingface.co/docs/safetensors (8 bytes header length, little endian; a JSON header padded with spaces;
the tensors' bytes without holes).
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from mixtral_runtime.formats.base import TensorSpec
from mixtral_runtime.safetensors_reader import HEADER_DTYPES, tensor_bytes

ALIGNMENT = 64  # of the first tensor in the file: one cache line, and enough for every vector load
DTYPE_NAMES = {dtype: name for name, dtype in HEADER_DTYPES.items()}


class SafetensorsWriter:
    """The header, which needs every name, shape and dtype, is written at once; then each byte has its known place.

    `write` may come in any order. present: the tensors that an interrupted writer of the same specs has put into the
    file already; without any, whatever is at `path` is replaced.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], present: Collection[str] = ()) -> None:
        # Wider elements first: every tensor is then aligned to its own element size without holes.
        ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
        self._specs = {spec.name: spec for spec in ordered}
        header, self._offsets, size = _layout(ordered)
        # Slices along the first dimension.
        self._missing = {spec.name: 0 if spec.name in present else spec.shape[0] for spec in ordered}
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | (0 if present else os.O_TRUNC), 0o644)
        self._write_at(memoryview(header), 0)
        with self._named_errors():
            os.ftruncate(self._file, size)

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """A whole tensor, or the slices from `start` on along its first dimension."""
        spec = self._specs[name]
        assert tensor.dtype == spec.dtype, (name, tensor.dtype)
        assert tuple(tensor.shape[1:]) == spec.shape[1:], (name, tensor.shape)
        assert start + tensor.shape[0] <= spec.shape[0], (name, start)
        slice_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        self._write_at(tensor_bytes(tensor), self._offsets[name] + start * slice_bytes)
        self._missing[name] -= tensor.shape[0]

    def sync(self) -> None:
        """Returns when everything written so far is on disk."""
        with self._named_errors():
            os.fdatasync(self._file)

    def close(self) -> None:
        """Flushes to disk. Everything must have been written."""
        missing = [name for name, slices in self._missing.items() if slices]
        assert not missing, missing
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            os.close(self._file)

    def _write_at(self, data: memoryview, offset: int) -> None:
        end = offset + len(data)
        with self._named_errors():
            while data:  # one call writes 2 GiB at most
                written = os.pwrite(self._file, data, end - len(data))
                data = data[written:]
        # Asks the kernel to begin writing to disk at once, so that `sync` has little left to wait for, and not to fill
        # the memory of the machine with a file that nobody reads now.
        os.posix_fadvise(self._file, offset, end - offset, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Functions of a file descriptor do not say which file it is that is too large, or on a full disk."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


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
