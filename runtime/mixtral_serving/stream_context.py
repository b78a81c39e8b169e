"""What `postprocessing` must know of a request, as the one opaque tensor that reaches it.

An ensemble input cannot be mapped into a step behind a decoupled model, so `preprocessing` packs this, the engine
model carries it unread and sends it with the first response of the stream.
"""

import json
from dataclasses import dataclass, fields

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.tensors import Array


@dataclass(frozen=True, slots=True)
class StreamContext:
    """prompt_tail: the prompt's last token ids. stops: stop strings. prompt_text: put before the output, or None.
    strip_space: drop one leading space of the output. return_output_ids, return_num_output_tokens: send them along."""

    prompt_tail: list[int]
    stops: list[str]
    prompt_text: str | None = None
    strip_space: bool = False
    return_output_ids: bool = False
    return_num_output_tokens: bool = False

    def pack(self) -> Array:
        """[1, bytes] uint8: the backend packs strings in Python, twice for each model they pass."""
        packed = json.dumps([getattr(self, field.name) for field in fields(self)]).encode()
        return np.frombuffer(packed, np.uint8).reshape(1, -1)

    @classmethod
    def unpack(cls, packed: Array) -> "StreamContext":
        """Raises InvalidArgument when it is none of `pack`."""
        try:
            return cls(*json.loads(packed.tobytes()))
        except (ValueError, TypeError) as error:
            raise InvalidArgument("STREAM_CONTEXT is none that preprocessing made") from error
