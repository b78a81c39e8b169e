"""What `postprocessing` must know of a request, as the one opaque tensor that reaches it.

An ensemble input cannot be mapped into a step behind a decoupled model, so `preprocessing` packs this, the engine
model carries it unread and sends it in the first chunk of the stream (`stream_chunk.py`).
"""

from dataclasses import dataclass

import numpy as np
import orjson

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.tensors import Array

_FOREIGN = "STREAM_CONTEXT is none that preprocessing made"


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
        """[1, bytes] uint8, JSON: the backend packs strings in Python, twice for each model they pass."""
        packed = orjson.dumps(
            (
                self.prompt_tail,
                self.stops,
                self.prompt_text,
                self.strip_space,
                self.return_output_ids,
                self.return_num_output_tokens,
            )
        )
        return np.frombuffer(packed, np.uint8)[None]

    @classmethod
    def unpack(cls, packed: bytes) -> "StreamContext":
        """packed: the JSON. Raises InvalidArgument when it is none of `pack`: anybody may call the models with their
        own."""
        try:
            context = cls(*orjson.loads(packed))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(_FOREIGN) from error
        if not context._is_sound():
            raise InvalidArgument(_FOREIGN)
        return context

    def _is_sound(self) -> bool:
        lists = ((self.prompt_tail, int), (self.stops, str))
        return all(isinstance(items, list) and all(type(item) is kind for item in items) for items, kind in lists) and (
            self.prompt_text is None or isinstance(self.prompt_text, str)
        )
