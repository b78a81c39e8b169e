"""Sampling parameters, reproducibility by seed, and log probabilities."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_runtime.engine import SamplingParams
from mixtral_runtime.pytorch.sampler import Constraints, Draw, sample, token_log_probs, top_log_probs, uniform

PROBS = [0.05, 0.4, 0.1, 0.3, 0.15]
LOGITS = torch.tensor([PROBS]).log()
RANDOM = SamplingParams(temperature=1.0)
DRAWS = 4000


def draw_many(params: SamplingParams, seen: list[int] | None = None, logits: torch.Tensor = LOGITS) -> dict[int, float]:
    """The share of each token in DRAWS consecutive steps."""
    draws = [Draw(params, step, seen or []) for step in range(DRAWS)]
    counted = Counter(sample(logits.expand(DRAWS, -1), draws).tolist())
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
    found = draw_many(replace(RANDOM, repetition_penalty=2.0), seen=[0, 2, 2], logits=logits)
    assert_distribution(found, {0: math.exp(1.0), 1: math.exp(1.0), 2: math.exp(-2.0)})


def test_repetition_penalty_changes_greedy_too() -> None:
    draw = Draw(SamplingParams(repetition_penalty=2.0), 0, [0])
    assert sample(torch.tensor([[1.5, 1.0, 0.0]]), [draw]).tolist() == [1]


def test_presence_and_frequency_penalty_are_taken_from_the_logits_of_the_output() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the output: OpenAI's API reference."""
    params = SamplingParams(1.0, presence_penalty=0.5, frequency_penalty=0.25)
    seen, prompt_len = [4, 4, 2, 0, 2, 2], 3  # the 4s and one 2 are the prompt's
    draws = [Draw(replace(params, seed=seed), 3, seen, prompt_len) for seed in range(DRAWS)]
    found = Counter(sample(LOGITS.expand(DRAWS, -1), draws).tolist())
    taken = {0: 0.5 + 0.25, 2: 0.5 + 2 * 0.25}
    expected = {i: p * math.exp(-taken.get(i, 0.0)) for i, p in enumerate(PROBS)}
    assert_distribution({token: count / DRAWS for token, count in sorted(found.items())}, expected)


def test_a_bias_is_added_before_the_filters() -> None:
    bias = (torch.tensor([0, 1]), torch.tensor([math.log(4.0), -100.0]))
    draws = [Draw(replace(RANDOM, top_k=2), step, [], 0, Constraints(bias=bias)) for step in range(DRAWS)]
    found = Counter(sample(LOGITS.expand(DRAWS, -1), draws).tolist())
    assert_distribution({t: c / DRAWS for t, c in sorted(found.items())}, {0: 0.2, 3: 0.3})


def test_the_logits_given_are_not_changed() -> None:
    logits = LOGITS.clone()
    constraints = Constraints(0, 9, [[1]], (torch.tensor([3]), torch.tensor([1.0])))
    sample(logits, [Draw(SamplingParams(1.0, repetition_penalty=2.0, presence_penalty=1.0), 1, [3], 0, constraints)])
    assert torch.equal(logits, LOGITS)


def test_a_bad_sequence_is_banned_only_where_its_last_token_would_complete_it() -> None:
    constraints = Constraints(bad_sequences=[[7], [1, 2, 3], [2, 4]])
    assert constraints.banned([5, 1, 2], 0) == [7, 3, 4]
    assert constraints.banned([1, 2, 5], 0) == [7]
    assert constraints.banned([1, 5], 0) == [7]
    assert constraints.banned([2], 0) == [7, 4]
    assert constraints.banned([], 0) == [7]


def test_the_end_token_is_banned_until_min_tokens() -> None:
    constraints = Constraints(end_id=1, min_tokens=2)
    greedy = [sample(LOGITS, [Draw(SamplingParams(), step, [], 0, constraints)]).item() for step in range(4)]
    assert greedy == [3, 3, 1, 1]
    assert Constraints(end_id=None, min_tokens=2).banned([], 0) == []


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
    bias = (torch.arange(len(values)), torch.full((len(values),), data.draw(st.floats(-10000, 10000, width=32))))
    constraints = Constraints(bad_sequences=[[token] for token in banned], bias=bias)
    token = int(sample(torch.tensor([values]), [Draw(params, 3, [0, 0, 1], 0, constraints)]).item())
    assert token not in banned or len(banned) == len(values)
    assert 0 <= token < len(values)


def test_a_row_is_sampled_alike_alone_and_among_others() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 97) * 3
    bias = (torch.tensor([3, 96]), torch.tensor([5.0, -5.0]))
    draws = [
        Draw(
            SamplingParams(
                temperature=0.1 + row / 20,
                top_k=row % 7,
                top_p=1 - row / 80,
                min_p=row / 100,
                repetition_penalty=1 + row % 2,
                presence_penalty=row % 3 / 2,
                frequency_penalty=row % 5 - 2,
                seed=row,
            ),
            row,
            [row, row + 1],
            prompt_len=row % 2,
            constraints=Constraints(row, 20, [[row % 11]] * (row % 4), bias if row % 3 else None),
        )
        for row in range(40)
    ]
    together = sample(logits, draws).tolist()
    alone = [sample(logits[row : row + 1], [draws[row]]).item() for row in range(40)]
    assert together == alone


def test_the_draw_depends_on_seed_and_step() -> None:
    values = {uniform(seed, step) for seed in range(50) for step in range(50)}
    assert len(values) == 2500
    assert abs(sum(values) / 2500 - 0.5) < 0.03


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_the_draw_is_in_the_unit_interval_and_reproducible(seed: int, step: int) -> None:
    assert 0 <= uniform(seed, step) < 1
    assert uniform(seed, step) == uniform(seed, step)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 2**64 - 1), st.data())
def test_any_token_that_is_drawn_was_kept(values: list[float], seed: int, data: st.DataObject) -> None:
    params = SamplingParams(
        temperature=data.draw(st.floats(0.01, 10)), top_k=data.draw(st.integers(0, 10)), top_p=0.9, min_p=0.1, seed=seed
    )
    token = int(sample(torch.tensor([values]), [Draw(params, 0, [])]).item())
    better = sum(value > values[token] for value in values)
    assert params.top_k == 0 or better < params.top_k
    assert values[token] / params.temperature >= max(values) / params.temperature + math.log(0.1) - 1e-6


def test_log_probs_are_those_of_the_raw_distribution() -> None:
    assert token_log_probs(LOGITS + 7, torch.tensor([3])) == pytest.approx([math.log(0.3)], abs=1e-6)


def test_top_log_probs_come_best_first() -> None:
    top = top_log_probs(LOGITS[0], 3)
    assert top.token_ids == [1, 3, 4]
    assert top.log_probs == pytest.approx([math.log(p) for p in (0.4, 0.3, 0.15)], abs=1e-6)
