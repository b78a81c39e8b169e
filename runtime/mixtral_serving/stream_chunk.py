"""Tokens and their stream's id in one tensor, from the engine model to the detokenizer.

Each tensor of a response costs the server and both models 15 to 20 microseconds, whatever is in it, and these two are
on every response.
"""

import numpy as np

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.tensors import Array

_HALF = 2**31  # an INT32 tensor carries the id in two halves


def pack_chunk(stream_id: int, token_ids: list[int]) -> Array:
    """[1, 2 + tokens] int32. stream_id: below 2**64."""
    return np.array([[(stream_id & 0xFFFFFFFF) - _HALF, (stream_id >> 32) - _HALF, *token_ids]], np.int32)


def unpack_chunk(chunk: Array) -> tuple[int, list[int]]:
    """The stream's id and the token ids. Raises InvalidArgument when it is none of `pack_chunk`."""
    if chunk.size < 2:
        raise InvalidArgument(f"STREAM_CHUNK has {chunk.size} values, it must have at least 2")
    low, high, *token_ids = chunk.reshape(-1).tolist()
    return (low + _HALF) | (high + _HALF) << 32, token_ids
