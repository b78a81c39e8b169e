"""What `preprocessing` made of a request, as the one tensor that reaches the engine model.

Each tensor between two models costs the time to the first token some 20 microseconds in each of three processes, and
each one that the ensemble maps a few more even when it is absent. So all travels in one: the token ids as they are, and
behind them the stream's context, unread, and what few requests have.
"""

import json
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.tensors import Array

_WORD = 4  # bytes of a value
_FOREIGN = "PREPARED_PROMPT is none that preprocessing made"


@dataclass(slots=True)
class PreparedPrompt:
    """context: `StreamContext.pack`, without a line break. stop_sequences, bad_sequences: token ids. logit_bias: by
    token id."""

    token_ids: list[int]
    context: bytes
    stop_sequences: list[list[int]] = field(default_factory=list)
    bad_sequences: list[list[int]] = field(default_factory=list)
    logit_bias: dict[int, float] = field(default_factory=dict)

    def pack(self) -> Array:
        """[1, values] int32: how many ids, the ids, and bytes filled up to whole values: the context, a line break,
        and the rest as JSON, if there is any."""
        packed = self.context + b"\n"
        if self.stop_sequences or self.bad_sequences or self.logit_bias:
            rest = (self.stop_sequences, self.bad_sequences, [list(pair) for pair in self.logit_bias.items()])
            packed += json.dumps(rest).encode()
        packed += b" " * (-len(packed) % _WORD)
        values = array("i", (len(self.token_ids), *self.token_ids)).tobytes() + packed
        return np.frombuffer(values, np.int32)[None]

    @classmethod
    def unpack(cls, packed: Array) -> "PreparedPrompt":
        """Raises InvalidArgument when it is none of `pack`: anybody may call the engine model with their own."""
        values = packed.reshape(-1)
        count = int(values[0]) if values.size else -1
        if not 0 <= count < values.size:
            raise InvalidArgument(_FOREIGN)
        ids = values[1 : 1 + count].tolist()
        context, _, rest = values[1 + count :].tobytes().partition(b"\n")
        if not rest or rest.isspace():
            return cls(ids, context)
        try:
            stops, bad, bias = json.loads(rest)
            prepared = cls(ids, context, stops, bad, dict(bias))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(_FOREIGN) from error
        if not prepared._is_sound():
            raise InvalidArgument(_FOREIGN)
        return prepared

    def _is_sound(self) -> bool:
        sequences: list[Any] = [self.stop_sequences, self.bad_sequences]
        return (
            all(isinstance(found, list) and all(map(_are_ids, found)) for found in sequences)
            and _are_ids(list(self.logit_bias))
            and all(type(value) is float for value in self.logit_bias.values())
        )


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list) and all(type(i) is int for i in ids)
