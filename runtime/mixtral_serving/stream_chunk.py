"""What one response of the engine tells the detokenizer, as one tensor.

Each tensor of a response costs the server and both models 15 to 20 microseconds, whatever is in it, and each one that
the ensemble maps costs the server some more even when it is absent. So all travels in one: the stream's id and the
token ids as they are, and what few responses carry as JSON behind them.
"""

import json
from array import array
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.tensors import Array

_HALF = 2**31  # an INT32 tensor carries the id in two halves
_HEADER = 3  # values: the id's halves, and how many token ids follow
_WORD = 4  # bytes of a value
_FOREIGN = "STREAM_CHUNK is none that the engine model made"


@dataclass(slots=True)
class ChunkExtras:
    """context: of the stream, with its first response. error: a MixtralError's text. log_probs, top_ids, top_log_probs:
    per token, the last two [tokens][alternatives]."""

    context: bytes | None = None
    finish_reason: str | None = None
    error: str | None = None
    log_probs: list[float] | None = None
    top_ids: list[list[int]] | None = None
    top_log_probs: list[list[float]] | None = None

    def has_context_at_most(self) -> bool:
        return self is NO_EXTRAS or (self.finish_reason is None and self.error is None and self.log_probs is None)

    def is_sound(self) -> bool:
        return (
            all(text is None or isinstance(text, str) for text in (self.finish_reason, self.error))
            and _are(self.log_probs, float)
            and _rows_are(self.top_ids, int)
            and _rows_are(self.top_log_probs, float)
        )


def _are(items: Any, kind: type) -> bool:
    return items is None or (isinstance(items, list) and all(type(item) is kind for item in items))


def _rows_are(rows: Any, kind: type) -> bool:
    return rows is None or (isinstance(rows, list) and all(row is not None and _are(row, kind) for row in rows))


NO_EXTRAS = ChunkExtras()
_NAMES = tuple(f.name for f in fields(ChunkExtras))[1:]


def pack_chunk(stream_id: int, token_ids: list[int], extras: ChunkExtras = NO_EXTRAS) -> Array:
    """[1, values] int32: header, token ids, and the extras' bytes filled up to whole values: the context as it is,
    a line break, the rest as JSON. stream_id: below 2**64."""
    values = (stream_id & 0xFFFFFFFF) - _HALF, (stream_id >> 32) - _HALF, len(token_ids), *token_ids
    packed = array("i", values).tobytes()
    if extras is not NO_EXTRAS:
        rest = {name: value for name in _NAMES if (value := getattr(extras, name)) is not None}
        packed += (extras.context or b"") + b"\n" + (json.dumps(rest).encode() if rest else b"")
        packed += b" " * (-len(packed) % _WORD)
    chunk: Array = np.frombuffer(packed, np.int32)[None]
    return chunk


def unpack_chunk(packed: Array) -> tuple[int, list[int], ChunkExtras]:
    """Stream id, token ids and extras. Raises InvalidArgument when it is none of `pack_chunk`: anybody may call
    `postprocessing` with their own."""
    if packed.size < _HEADER:
        raise InvalidArgument(f"STREAM_CHUNK has {packed.size} values, it must have at least {_HEADER}")
    low, high, count, *ids = packed.reshape(-1).tolist()
    stream_id = (low + _HALF) | (high + _HALF) << 32
    if count == len(ids):
        return stream_id, ids, NO_EXTRAS
    if not 0 <= count < len(ids):
        raise InvalidArgument(_FOREIGN)
    return stream_id, ids[:count], _extras(packed.reshape(-1)[_HEADER + count :].tobytes())


def _extras(packed: bytes) -> ChunkExtras:
    context, _, rest = packed.partition(b"\n")
    if not rest or rest.isspace():
        return ChunkExtras(context or None)
    try:
        given = json.loads(rest)
        extras = ChunkExtras(context or None, **given)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(_FOREIGN) from error
    if not extras.is_sound():
        raise InvalidArgument(_FOREIGN)
    return extras
