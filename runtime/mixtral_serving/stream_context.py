"""What `postprocessing` must know of a request.

An ensemble input cannot be mapped into a step behind a decoupled model, so `preprocessing` packs this with the prompt
(`prepared_prompt.py`), the engine model carries it unread and sends it in the stream's first chunk (`stream_chunk.py`).
"""

from dataclasses import dataclass

import orjson

from mixtral_runtime.errors import InvalidArgument

_FOREIGN = "the stream's context is none that preprocessing made"

_INT, _STR = {int}, {str}


@dataclass(slots=True)
class StreamContext:
    """prompt_tail: the prompt's last token ids. stops: stop strings. prompt_text: put before the output, or None.
    strip_space: drop one leading space of the output. return_output_ids, return_num_output_tokens: send them along."""

    prompt_tail: list[int]
    stops: list[str]
    prompt_text: str | None = None
    strip_space: bool = False
    return_output_ids: bool = False
    return_num_output_tokens: bool = False

    def pack(self) -> bytes:
        """JSON, without a line break."""
        return orjson.dumps(
            (
                self.prompt_tail,
                self.stops,
                self.prompt_text,
                self.strip_space,
                self.return_output_ids,
                self.return_num_output_tokens,
            )
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "StreamContext":
        """packed: the JSON. Raises InvalidArgument when it is none of `pack`: anybody may call the models with their
        own."""
        try:
            context = cls(*orjson.loads(packed))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(_FOREIGN) from error
        tail, stops, text = context.prompt_tail, context.stops, context.prompt_text
        sound = type(tail) is list and type(stops) is list and (text is None or type(text) is str)
        if not sound or not {*map(type, tail)} <= _INT or not {*map(type, stops)} <= _STR:
            raise InvalidArgument(_FOREIGN)
        return context
