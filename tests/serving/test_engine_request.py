"""NVIDIA's input tensors become the engine's request; what cannot be done is refused by name and value."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.engine_request import NEUTRAL_VALUES, UNSUPPORTED_DATA, engine_request
from mixtral_serving.tensors import Tensors, pack_words, unpack_words


def tensors(**values: Any) -> Tensors:
    base = {
        "input_ids": np.array([[1, 5, 6, 0]], np.int32),
        "input_lengths": np.array([[3]], np.int32),
        "request_output_len": np.array([[7]], np.int32),
    }
    given = {name: np.array([[value]]) if np.isscalar(value) else np.asarray(value) for name, value in values.items()}
    return Tensors(base | given)


def parsed(**values: Any) -> Request:
    return engine_request(tensors(**values), default_end_id=2)[0]


def test_the_smallest_request_is_greedy() -> None:
    request = parsed()
    assert request.prompt_ids == [1, 5, 6]  # cut by input_lengths
    assert request.max_tokens == 7
    assert request.sampling.greedy
    assert request.end_id == 2
    assert not request.streaming


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.5}, SamplingParams(temperature=0.5)),
        ({"runtime_top_k": 5}, SamplingParams(temperature=1.0, top_k=5)),
        ({"runtime_top_p": 0.5}, SamplingParams(temperature=1.0, top_p=0.5)),
        ({"min_p": 0.25}, SamplingParams(temperature=1.0, min_p=0.25)),
        ({"runtime_top_p": 0.0, "runtime_top_k": 0}, SamplingParams()),
        ({"temperature": 1.0, "runtime_top_k": 1, "runtime_top_p": 0.0}, SamplingParams(temperature=1.0, top_k=1)),
        ({"repetition_penalty": 1.5}, SamplingParams(repetition_penalty=1.5)),
    ],
)
def test_sampling_parameters_apply_when_given(given: dict[str, float], expected: SamplingParams) -> None:
    assert parsed(**given, seed=np.uint64(7)).sampling == SamplingParams(
        **{name: getattr(expected, name) for name in SamplingParams.__dataclass_fields__} | {"seed": 7}
    )


def test_a_seed_is_drawn_when_none_is_given() -> None:
    assert len({parsed(temperature=1.0).sampling.seed for _ in range(8)}) == 8
    assert parsed(seed=np.uint64(2**64 - 1)).sampling.seed == 2**64 - 1


def test_flags_and_lists_reach_the_request() -> None:
    request = parsed(
        ignore_eos=True, streaming=True, timeout_ms=1500, top_log_probs=3, stop_words_list=pack_words([[5], [6, 7]])
    )
    assert request.end_id is None
    assert request.streaming
    assert request.timeout_s == 1.5
    assert (request.return_log_probs, request.top_log_probs) == (True, 3)
    assert request.stop_sequences == [[5], [6, 7]]


def test_penalties_and_constraints_reach_the_request() -> None:
    bias = np.zeros((1, 32000), np.float32)
    bias[0, [5, 31999]] = -100.0, 2.5
    request = parsed(
        presence_penalty=0.5,
        frequency_penalty=-1.5,
        min_tokens=3,
        bad_words_list=pack_words([[5], [6, 7]]),
        embedding_bias=bias,
    )
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (0.5, -1.5)
    assert request.sampling.greedy  # penalties do not make a request random
    assert request.min_tokens == 3
    assert request.bad_sequences == [[5], [6, 7]]
    assert request.logit_bias == {5: -100.0, 31999: 2.5}


def test_what_says_nothing_changes_nothing() -> None:
    given = {"presence_penalty": 0.0, "min_tokens": 0, "embedding_bias": np.zeros((1, 8), np.float32)}
    request = parsed(**given, bad_words_list=np.zeros((1, 2, 0), np.int32), seed=np.uint64(1))
    assert request == parsed(seed=np.uint64(1))


def test_responses_carry_one_token_unless_more_are_asked_for() -> None:
    assert engine_request(tensors(), default_end_id=2)[1].interval == 1
    assert engine_request(tensors(stream_interval=1024), default_end_id=2)[1].interval == 1024


def test_end_id_of_the_client_wins_and_minus_one_means_the_tokenizers() -> None:
    assert parsed(end_id=9).end_id == 9
    assert parsed(end_id=-1).end_id == 2


@pytest.mark.parametrize("name", NEUTRAL_VALUES)
def test_values_that_change_nothing_are_accepted_and_others_refused_by_name(name: str) -> None:
    for neutral in NEUTRAL_VALUES[name]:
        parsed(**{name: neutral})
    with pytest.raises(InvalidArgument, match=f"{name} is 4, this engine supports only"):
        parsed(**{name: 4})


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_DATA))
def test_data_for_absent_features_is_refused_unless_empty(name: str) -> None:
    parsed(**{name: np.zeros((1, 0), np.float32)})
    with pytest.raises(InvalidArgument, match=f"{name} was given"):
        parsed(**{name: np.ones((1, 1), np.float32)})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"input_lengths": 5}, "input_lengths is 5, it must be from 0 to the 4 ids"),
        ({"timeout_ms": 0}, "timeout_ms is 0, it must be from 1"),
        ({"stream_interval": 0}, "stream_interval is 0, it must be from 1 to 1024"),
        ({"stream_interval": 1025}, "stream_interval is 1025, it must be from 1 to 1024"),
        ({"input_ids": np.ones((2, 3), np.int32)}, "input_ids has 2 prompts in one request, the limit is 1"),
        ({"beam_width": np.ones((2, 1), np.int32)}, "beam_width has 2 prompts"),
        ({"temperature": np.ones((1, 2), np.float32)}, "temperature has 2 values, it must have one"),
        ({"stop_words_list": np.ones((1, 3, 2), np.int32)}, r"stop_words_list has shape \[1, 3, 2\]"),
        ({"stop_words_list": np.array([[[5, 6], [3, -1]]], np.int32)}, "stop_words_list has an end 3"),
        ({"bad_words_list": np.array([[[5, 6], [3, -1]]], np.int32)}, "bad_words_list has an end 3"),
        ({"embedding_bias": np.ones((2, 8), np.float32)}, "embedding_bias has 2 prompts in one request"),
    ],
)
def test_wrong_tensors_are_refused_with_name_and_value(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        parsed(**given)


@given(st.lists(st.lists(st.integers(0, 31999), min_size=1, max_size=5), max_size=6))
def test_word_lists_survive_nvidias_packing(words: list[list[int]]) -> None:
    packed = pack_words(words)
    assert packed.dtype == np.int32
    assert packed.shape == (1, 2, sum(map(len, words)))
    assert unpack_words("stop_words_list", packed) == words
