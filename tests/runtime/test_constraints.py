"""What a request may say of single tokens: penalties, biases, bad sequences and a least length, on the whole engine."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtral_runtime.engine import FinishReason, Request, SamplingParams
from mixtral_runtime.errors import InvalidArgument

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8]
ANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLINGS = st.builds(SamplingParams, temperature=st.sampled_from([0.0, 0.7, 2.0]), seed=st.integers(0, 2**64 - 1))


def generate(engine: Any, collect: Any, **fields: Any) -> Any:
    request_id = engine.submit(Request(**{"prompt_ids": PROMPT, "max_tokens": 16, **fields}))
    return collect(engine, request_id)[request_id]


def occurs(sequence: list[int], tokens: list[int]) -> bool:
    return any(tokens[i : i + len(sequence)] == sequence for i in range(len(tokens)))


@ANY
@given(SAMPLINGS, st.integers(1, 4), st.integers(0, 12))
def test_a_banned_sequence_never_occurs(
    make_engine: Any, collect: Any, sampling: SamplingParams, length: int, start: int
) -> None:
    """Each is taken out of what would come, until nothing of what was banned does."""
    engine = make_engine()
    bad: list[list[int]] = []
    for _ in range(4):
        tokens = generate(engine, collect, sampling=sampling, bad_sequences=bad).token_ids
        assert not any(occurs(sequence, tokens) for sequence in bad)
        bad.append(tokens[start : start + length])
    engine.close()


def test_a_bad_sequence_that_begins_in_the_prompt_is_not_completed(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    first = generate(engine, collect, max_tokens=1).token_ids[0]
    assert generate(engine, collect, bad_sequences=[[PROMPT[-1], first]], max_tokens=1).token_ids != [first]
    assert generate(engine, collect, bad_sequences=[[PROMPT[-2], first]], max_tokens=1).token_ids == [first]


@ANY
@given(SAMPLINGS, st.integers(0, 16))
def test_the_end_token_never_comes_before_min_tokens(
    make_engine: Any, collect: Any, sampling: SamplingParams, min_tokens: int
) -> None:
    """The end token is made the likeliest by far, so it comes as soon as it may."""
    engine = make_engine()
    found = generate(engine, collect, sampling=sampling, min_tokens=min_tokens, end_id=9, logit_bias={9: 100.0})
    assert len(found.token_ids) == min_tokens
    assert 9 not in found.token_ids
    assert found.finish_reason is (FinishReason.LENGTH if min_tokens == 16 else FinishReason.STOP)
    engine.close()


def test_a_stop_sequence_ends_before_min_tokens(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    tokens = generate(engine, collect).token_ids
    found = generate(engine, collect, min_tokens=16, stop_sequences=[tokens[:1]])
    assert (found.token_ids, found.finish_reason) == (tokens[:1], FinishReason.STOP)


@ANY
@given(SAMPLINGS, st.integers(0, 159))
def test_a_bias_of_100_forces_a_token_and_of_minus_100_bans_it(
    make_engine: Any, collect: Any, sampling: SamplingParams, token: int
) -> None:
    engine = make_engine()
    assert generate(engine, collect, sampling=sampling, logit_bias={token: 100.0}).token_ids == [token] * 16
    likeliest = Counter(generate(engine, collect, sampling=sampling).token_ids).most_common(1)[0][0]
    assert likeliest not in generate(engine, collect, sampling=sampling, logit_bias={likeliest: -100.0}).token_ids
    engine.close()


def test_penalties_count_the_output_and_not_the_prompt(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    liked = {PROMPT[0]: 60.0, PROMPT[1]: 50.0}  # both in the prompt, and by far the likeliest
    expected = {
        SamplingParams(): [PROMPT[0]] * 4,
        SamplingParams(presence_penalty=20.0): [PROMPT[0], PROMPT[1], PROMPT[0], PROMPT[0]],
        SamplingParams(frequency_penalty=20.0): [PROMPT[0], PROMPT[1], PROMPT[0], PROMPT[1]],
    }
    for sampling, tokens in expected.items():
        assert generate(engine, collect, max_tokens=4, sampling=sampling, logit_bias=liked).token_ids == tokens


def test_log_probs_stay_those_of_the_models_distribution(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    asked: dict[str, Any] = {"max_tokens": 1, "return_log_probs": True, "top_log_probs": 20}
    plain = generate(engine, collect, **asked)
    second = plain.top_log_probs[0].token_ids[1]
    forced = generate(engine, collect, **asked, logit_bias={second: 100.0})
    assert forced.token_ids == [second]
    assert forced.top_log_probs == plain.top_log_probs
    assert forced.log_probs == [plain.top_log_probs[0].log_probs[1]]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"min_tokens": 17}, "min_tokens is 17, it must be from 0 to max_tokens, which is 16"),
        ({"min_tokens": -1}, "min_tokens is -1, it must be from 0"),
        ({"bad_sequences": [[5]] * 129}, "there are 129 bad sequences, the limit is 128"),
        ({"bad_sequences": [[5], []]}, "there are 2 bad sequences, the limit is 128, none empty"),
        ({"bad_sequences": [[5, 160]]}, "a bad sequence has token id 160, ids run from 0 to 159"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has token id -1, ids run from 0 to 159"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias of token 7 is nan, it must be from -10000 to 10000"),
        ({"logit_bias": {7: float("-inf")}}, "logit_bias of token 7 is -inf"),
        ({"sampling": SamplingParams(presence_penalty=101)}, "presence_penalty is 101, it must be from -100 to 100"),
        ({"sampling": SamplingParams(frequency_penalty=float("nan"))}, "frequency_penalty is nan"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    make_engine: Any, collect: Any, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        generate(make_engine(), collect, **fields)
