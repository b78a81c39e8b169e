"""Output tensors that many responses have in common.

Making a tensor of a text costs the detokenizer more than decoding it. One that is there can be part of any number of
responses: the backend writes it to shared memory with the first of them and counts who reads it.
"""

from collections.abc import Callable, Hashable
from typing import Any

# Of each of two generations. At low load a response is one token, and of English text in Mixtral's vocabulary 93 to 95
# of 100 tokens are found here (84,000 tokens of docs/, 123,000 of Python's manual). Each keeps a little shared memory.
KEPT = 2048


class ReusedTensors:
    """Tensors by their value. What was not asked for while KEPT others were is forgotten."""

    def __init__(self, make: Callable[[Any], Any], kept: int = KEPT) -> None:
        """make: a tensor of a value."""
        self._make, self._kept = make, kept
        self._young: dict[Hashable, Any] = {}
        self._old: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __getitem__(self, value: Hashable) -> Any:
        if (tensor := self._young.get(value)) is not None:
            return tensor
        if len(self._young) >= self._kept:
            self._old, self._young = self._young, {}
        tensor = self._young[value] = self._old.pop(value, None) or self._make(value)
        return tensor
