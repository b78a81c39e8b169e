"""The one tensor from the engine model to the detokenizer: exact, and refused when it is another's."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.stream_chunk import NO_EXTRAS, ChunkExtras, pack_chunk, unpack_chunk

FLOATS = st.floats(width=32, allow_nan=False)
EXTRAS = st.builds(
    ChunkExtras,
    context=st.none() | st.binary(min_size=1, max_size=9).filter(lambda packed: b"\n" not in packed),
    finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    error=st.none() | st.text(max_size=9),
    log_probs=st.none() | st.lists(FLOATS, max_size=3),
    top_ids=st.none() | st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=2), max_size=3),
    top_log_probs=st.none() | st.lists(st.lists(FLOATS, max_size=2), max_size=3),
)


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**31 - 1)), st.just(NO_EXTRAS) | EXTRAS)
def test_what_was_packed_comes_out(stream_id: int, ids: list[int], extras: ChunkExtras) -> None:
    packed = pack_chunk(stream_id, ids, extras)
    assert packed.dtype == np.int32
    assert packed.shape[0] == 1
    assert unpack_chunk(packed) == (stream_id, ids, extras)


def test_without_extras_it_is_the_ids_and_three_values() -> None:
    assert pack_chunk(7, [5, 6]).shape == (1, 5)
    assert unpack_chunk(pack_chunk(7, [5, 6]))[2] is NO_EXTRAS


def test_a_log_probability_of_nothing_survives() -> None:
    packed = pack_chunk(7, [5], ChunkExtras(log_probs=[-math.inf]))
    assert unpack_chunk(packed)[2].log_probs == [-math.inf]


@pytest.mark.parametrize("values", [[], [1], [1, 2], [1, 2, -1], [1, 2, 1], [1, 2, 2**31 - 1, 5]])
def test_a_tensor_that_is_too_short_is_refused(values: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="STREAM_CHUNK"):
        unpack_chunk(np.array([values], np.int32))


WRONG: list[object] = [
    5,
    [],
    None,
    {"x": 1},
    {"context": "twice"},
    {"finish_reason": 5},
    {"error": []},
    {"log_probs": ["a"]},
    {"top_ids": [None]},
    {"top_ids": [[1.5]]},
    {"top_log_probs": [[1]]},
]


@pytest.mark.parametrize("extras", ["[" * 100_000] + [json.dumps(value) for value in WRONG])
def test_extras_of_another_are_refused_without_an_exception_of_their_own(extras: str) -> None:
    packed = b"\n" + extras.encode()
    packed += b" " * (-len(packed) % 4)
    values = np.concatenate([np.array([1, 2, 0], np.int32), np.frombuffer(packed, np.int32)])
    with pytest.raises(InvalidArgument, match="none that the engine model made"):
        unpack_chunk(values[None])
