"""The context that travels from preprocessing to postprocessing: exact, and refused when it is another's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.stream_context import StreamContext


@given(
    st.builds(
        StreamContext,
        prompt_tail=st.lists(st.integers(0, 2**31 - 1), max_size=4),
        stops=st.lists(st.text(max_size=5), max_size=3),
        prompt_text=st.none() | st.text(max_size=5),
        strip_space=st.booleans(),
        return_output_ids=st.booleans(),
        return_num_output_tokens=st.booleans(),
    )
)
def test_what_was_packed_comes_out(context: StreamContext) -> None:
    assert StreamContext.unpack(context.pack()) == context


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xff", b"5", b"{}", b"[]", b"[" * 100_000, b"[[1],[]," + b"0," * 9 + b"0]"]
    + [json.dumps(value).encode() for value in ([None, None], [["a"], []], [[1], [2]], [[1.5], []], [[1], [], 5])],
)
def test_anything_else_is_refused_without_an_exception_of_its_own(packed: bytes) -> None:
    with pytest.raises(InvalidArgument, match="none that preprocessing made"):
        StreamContext.unpack(packed)
