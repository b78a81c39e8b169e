"""The one tensor from preprocessing to the engine model: exact, and refused when it is another's."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.prepared_prompt import PreparedPrompt

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
SEQUENCES: st.SearchStrategy[list[list[int]]] = st.just([]) | st.lists(IDS, max_size=3)
FLOATS = st.floats(width=32, allow_nan=False)


@given(
    st.builds(
        PreparedPrompt,
        token_ids=IDS,
        context=st.binary(max_size=9).filter(lambda context: b"\n" not in context),
        stop_sequences=SEQUENCES,
        bad_sequences=SEQUENCES,
        logit_bias=st.just({}) | st.dictionaries(st.integers(0, 2**31 - 1), FLOATS, max_size=3),
    )
)
def test_what_was_packed_comes_out(prompt: PreparedPrompt) -> None:
    packed = prompt.pack()
    assert packed.dtype == np.int32
    assert packed.shape[0] == 1
    assert PreparedPrompt.unpack(packed) == prompt


def test_a_bias_that_is_no_number_arrives_as_such() -> None:
    """The engine refuses it with its token."""
    packed = PreparedPrompt([1], b"[]", logit_bias={7: math.nan}).pack()
    assert math.isnan(PreparedPrompt.unpack(packed).logit_bias[7])


@pytest.mark.parametrize("values", [[], [-1], [1], [5, 1, 2, 3], [2**31 - 1, 0]])
def test_a_tensor_that_is_too_short_is_refused(values: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="none that preprocessing made"):
        PreparedPrompt.unpack(np.array([values], np.int32))


@pytest.mark.parametrize(
    "rest",
    [b"{", b"5", b"[]", b"[[],[]]", b"[" * 100_000]
    + [
        json.dumps(value).encode()
        for value in (
            [5, [], []],
            [[5], [], []],
            [[["a"]], [], []],
            [[], [[1.5]], []],
            [[], [], 5],
            [[], [], [5]],
            [[], [], [["a", 1.0]]],
            [[], [], [[1, "a"]]],
            [[], [], [[[1], 1.0]]],
        )
    ],
)
def test_anything_else_is_refused_without_an_exception_of_its_own(rest: bytes) -> None:
    packed = b"[]\n" + rest + b" " * (-(len(rest) + 3) % 4)
    values = np.concatenate([np.array([0], np.int32), np.frombuffer(packed, np.int32)])
    with pytest.raises(InvalidArgument, match="none that preprocessing made"):
        PreparedPrompt.unpack(values[None])
