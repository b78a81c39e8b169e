"""Sampling parameters, reproducibility by seed, and log probabilities."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.pytorch import log_probs
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.sequence import Sequence

PROBS = [0.05, 0.4, 0.1, 0.3, 0.15]
LOGITS = torch.tensor([PROBS]).log()
RANDOM = SamplingParams(temperature=1.0)
DRAWS = 4000
CPU = torch.device("cpu")


def sequence(number: int, params: SamplingParams, prompt: list[int], output: list[int], **fields: Any) -> Sequence:
    """A sequence that has generated `output` so far."""
    found = Sequence(number, Request(prompt or [0], 10**6, params, **fields), None)
    found.tokens += output
    return found


def choose(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    tokens: list[int] = Sampler(len(sequences), logits.shape[1], CPU).sample(logits, sequences).tolist()
    return tokens


def draw_many(
    params: SamplingParams, output: list[int] | None = None, logits: torch.Tensor = LOGITS, **fields: Any
) -> dict[int, float]:
    """The share of each token in DRAWS rows with a seed each."""
    rows = [sequence(seed, replace(params, seed=seed), [0], output or [], **fields) for seed in range(DRAWS)]
    counted = Counter(choose(logits.expand(DRAWS, -1), rows))
    return {token: count / DRAWS for token, count in sorted(counted.items())}


def assert_distribution(found: dict[int, float], expected: dict[int, float]) -> None:
    total = sum(expected.values())
    assert found.keys() == expected.keys()
    for token, weight in expected.items():
        p = weight / total
        assert abs(found[token] - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS), f"token {token}: {found[token]}, not {p}"


def test_temperature_zero_and_top_k_one_are_greedy() -> None:
    assert draw_many(SamplingParams()) == {1: 1.0}
    assert draw_many(replace(RANDOM, top_k=1)) == {1: 1.0}


def test_temperature_one_draws_from_the_distribution() -> None:
    assert_distribution(draw_many(RANDOM), dict(enumerate(PROBS)))


def test_temperature_sharpens_and_flattens() -> None:
    assert_distribution(draw_many(replace(RANDOM, temperature=0.5)), {i: p**2 for i, p in enumerate(PROBS)})
    assert_distribution(draw_many(replace(RANDOM, temperature=2.0)), {i: p**0.5 for i, p in enumerate(PROBS)})


def test_top_k_keeps_the_k_most_likely() -> None:
    assert_distribution(draw_many(replace(RANDOM, top_k=3)), {1: 0.4, 3: 0.3, 4: 0.15})


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    assert_distribution(draw_many(replace(RANDOM, top_p=0.69)), {1: 0.4, 3: 0.3})
    assert_distribution(draw_many(replace(RANDOM, top_p=0.71)), {1: 0.4, 3: 0.3, 4: 0.15})
    assert_distribution(draw_many(replace(RANDOM, top_p=0.01)), {1: 1.0})


def test_top_p_applies_to_what_top_k_left_renormalised() -> None:
    # After top_k=2 the probabilities are 4/7 and 3/7: the first alone reaches 0.55, which 0.4 would not.
    assert_distribution(draw_many(replace(RANDOM, top_k=2, top_p=0.55)), {1: 1.0})


def test_min_p_is_relative_to_the_most_likely() -> None:
    assert_distribution(draw_many(replace(RANDOM, min_p=0.3)), {1: 0.4, 3: 0.3, 4: 0.15})  # at least 0.12


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    found = draw_many(replace(RANDOM, repetition_penalty=2.0), output=[2, 2], logits=logits)  # the prompt is a 0
    assert_distribution(found, {0: math.exp(1.0), 1: math.exp(1.0), 2: math.exp(-2.0)})


def test_repetition_penalty_changes_greedy_too() -> None:
    row = sequence(1, SamplingParams(repetition_penalty=2.0), [0], [])
    assert choose(torch.tensor([[1.5, 1.0, 0.0]]), [row]) == [1]


def test_presence_and_frequency_penalty_are_taken_from_the_logits_of_the_output() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the output: OpenAI's API reference."""
    found = draw_many(replace(RANDOM, presence_penalty=0.5, frequency_penalty=0.25), output=[1, 2, 2])
    taken = {1: 0.5 + 0.25, 2: 0.5 + 2 * 0.25}
    assert_distribution(found, {i: p * math.exp(-taken.get(i, 0.0)) for i, p in enumerate(PROBS)})


def test_a_bias_is_added_before_the_filters() -> None:
    found = draw_many(replace(RANDOM, top_k=2), logit_bias={0: math.log(4.0), 1: -100.0})
    assert_distribution(found, {0: 0.2, 3: 0.3})


def test_the_logits_given_are_not_changed() -> None:
    logits = LOGITS.clone()
    params = SamplingParams(1.0, repetition_penalty=2.0, presence_penalty=1.0)
    choose(logits, [sequence(1, params, [3], [3], end_id=0, min_tokens=9, bad_sequences=[[1]], logit_bias={3: 1.0})])
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("output", "banned"), [([5, 1, 2], {7, 3, 4}), ([1, 2, 5], {7}), ([1, 5], {7}), ([2], {7, 4}), ([], {7})]
)
def test_a_bad_sequence_is_banned_only_where_its_last_token_would_complete_it(
    output: list[int], banned: set[int]
) -> None:
    flat = torch.zeros(1, 9)
    found = draw_many(RANDOM, output, flat, bad_sequences=[[7], [1, 2, 3], [2, 4]])
    assert found.keys() == set(range(9)) - banned


def test_the_end_token_is_banned_until_min_tokens() -> None:
    rows = [sequence(step, SamplingParams(), [0], [0] * step, end_id=1, min_tokens=2) for step in range(4)]
    assert choose(LOGITS.expand(4, -1), rows) == [3, 3, 1, 1]
    assert choose(LOGITS, [sequence(1, SamplingParams(), [0], [], end_id=None, min_tokens=2)]) == [1]


@settings(deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=40),
    st.sets(st.integers(0, 39), min_size=1),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_a_banned_token_is_never_drawn(values: list[float], banned: set[int], seed: int, data: st.DataObject) -> None:
    banned = {token for token in banned if token < len(values)}
    params = SamplingParams(
        temperature=data.draw(st.floats(0, 100)),
        top_k=data.draw(st.integers(0, 50)),
        top_p=data.draw(st.floats(0.01, 1)),
        frequency_penalty=data.draw(st.floats(-100, 100)),
        seed=seed,
    )
    bias = dict.fromkeys(range(len(values)), data.draw(st.floats(-10000, 10000, width=32)))
    row = sequence(1, params, [0], [0, 0, 1], bad_sequences=[[token] for token in banned], logit_bias=bias)
    [token] = choose(torch.tensor([values]), [row])
    assert token not in banned or len(banned) == len(values)
    assert 0 <= token < len(values)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 2**64 - 1), st.data())
def test_any_token_that_is_drawn_was_kept(values: list[float], seed: int, data: st.DataObject) -> None:
    params = SamplingParams(
        temperature=data.draw(st.floats(0.01, 10)), top_k=data.draw(st.integers(0, 10)), top_p=0.9, min_p=0.1, seed=seed
    )
    [token] = choose(torch.tensor([values]), [sequence(1, params, [0], [])])
    better = sum(value > values[token] for value in values)
    assert params.top_k == 0 or better < params.top_k
    assert values[token] / params.temperature >= max(values) / params.temperature + math.log(0.1) - 1e-6


def test_log_probs_are_those_of_the_distribution() -> None:
    normalised = (LOGITS + 7).log_softmax(-1)
    assert log_probs.of_tokens(normalised, torch.tensor([3])) == pytest.approx([math.log(0.3)], abs=1e-6)


def test_the_most_likely_come_best_first_and_equals_by_their_ids() -> None:
    rows = torch.tensor([PROBS, [0.3, 0.1, 0.3, 0.3, 0.0]]).log()
    first, second = log_probs.most_likely(rows, [3, 2])
    assert first.token_ids == [1, 3, 4]
    assert first.log_probs == pytest.approx([math.log(p) for p in (0.4, 0.3, 0.15)], abs=1e-6)
    assert second.token_ids == [0, 2]


def test_more_of_the_most_likely_than_there_are_tokens_gives_all() -> None:
    assert log_probs.most_likely(LOGITS, [20])[0].token_ids == [1, 3, 4, 2, 0]
