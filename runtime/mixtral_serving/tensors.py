"""The tensors of a Triton request as plain Python values, with errors that name the tensor."""

from collections.abc import KeysView, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.prompt import decode_utf8

Array = npt.NDArray[Any]


class Tensors:
    """A request's inputs by name, batch dimension included. Absent optional inputs give the default."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> KeysView[str]:
        return self._arrays.keys()

    def has_any(self, names: frozenset[str]) -> bool:
        return not names.isdisjoint(self._arrays)

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """names: the new one of each."""
        return Tensors({names[name]: array for name, array in self._arrays.items()})

    def one(self, name: str, default: Any = None) -> Any:
        """The one value of a tensor as a Python scalar. Raises InvalidArgument when it has more or none."""
        array = self._arrays.get(name)
        if array is None:
            return default
        if array.size != 1:
            raise InvalidArgument(f"{name} has {array.size} values, it must have one per request")
        return array.item()

    def required(self, name: str) -> Any:
        """Like `one`. Raises InvalidArgument when the tensor is absent."""
        if name not in self._arrays:
            raise InvalidArgument(f"{name} is missing")
        return self.one(name)

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.one(name)) if name in self._arrays else default

    def ids(self, name: str) -> list[int] | None:
        """A row of token ids, or None. Raises InvalidArgument when there are several rows."""
        array = self._arrays.get(name)
        if array is None:
            return None
        check_single_row(name, array)
        ids: list[int] = array.reshape(-1).tolist()
        return ids

    def numbers(self, name: str) -> list[float]:
        """A row of numbers; empty when the tensor is absent."""
        if (array := self._arrays.get(name)) is None:
            return []
        check_single_row(name, array)
        values: list[float] = array.reshape(-1).tolist()
        return values

    def text(self, name: str) -> str | None:
        """One string, or None. Raises InvalidArgument when it is not UTF-8 or there are several."""
        if (array := self._arrays.get(name)) is None:
            return None
        check_single_row(name, array)
        return decode_utf8(name, _as_bytes(self.one(name)))

    def texts(self, name: str) -> list[str]:
        """All strings of a row; empty when the tensor is absent."""
        if (array := self._arrays.get(name)) is None:
            return []
        check_single_row(name, array)
        return [decode_utf8(name, _as_bytes(value)) for value in array.reshape(-1)]

    def array(self, name: str) -> Array | None:
        return self._arrays.get(name)


def check_single_row(name: str, array: Array) -> None:
    """Several prompts in one request are several requests; the engine model takes them one by one."""
    if array.ndim > 0 and array.shape[0] > 1:
        raise InvalidArgument(f"{name} has {array.shape[0]} prompts in one request, the limit is 1")


def pack_words(words: list[list[int]]) -> Array:
    """Token lists in NVIDIA's word-list form, int32 [1, 2, n]: all ids in a row over the end of each list, padded
    with -1. No words give [1, 2, 0]."""
    flat = [i for word in words for i in word]
    ends = np.full(len(flat), -1, np.int32)
    ends[: len(words)] = np.cumsum([len(word) for word in words], dtype=np.int32)
    return np.array([[flat, ends]], np.int32).reshape(1, 2, len(flat))


def unpack_words(name: str, array: Array | None) -> list[list[int]]:
    """The inverse of `pack_words`. Raises InvalidArgument when the ends do not fit the ids."""
    if array is None or array.size == 0:
        return []
    if array.ndim != 3 or array.shape[:2] != (1, 2):
        raise InvalidArgument(f"{name} has shape {list(array.shape)}, it must be [1, 2, n]")
    ids, ends = array[0].tolist()
    words, start = [], 0
    for end in ends:
        if end < 0:
            break
        if not start < end <= len(ids):
            raise InvalidArgument(f"{name} has an end {end} that does not follow {start} within its {len(ids)} ids")
        words.append(ids[start:end])
        start = end
    return words


def single_string(array: Array) -> bytes | None:
    """The bytes of a STRING tensor of one string, of whatever shape: its length in 4 bytes, then it. None when the
    array is not one string of bytes."""
    if array.size != 1 or type(text := array.item()) is not bytes:
        return None
    return len(text).to_bytes(4, "little") + text


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
