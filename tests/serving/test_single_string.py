"""One string is packed as Triton packs it; whatever else there is, is left to Triton's own way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from mixtral_serving.tensors import single_string


@given(st.binary(max_size=300), st.sampled_from([(), (1,), (1, 1)]))
def test_one_string_has_the_bytes_that_triton_gives_it(text: bytes, shape: tuple[int, ...]) -> None:
    array = np.array([text], np.object_).reshape(shape)
    assert single_string(array) == serialize_byte_tensor(array).item()


@pytest.mark.parametrize("values", [[], [b"a", b"b"], ["text"], [None]])
def test_other_arrays_are_left_alone(values: list[Any]) -> None:
    assert single_string(np.array(values, np.object_)) is None
