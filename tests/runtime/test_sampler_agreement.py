"""The sampler of whole batches chooses what a plain one chooses for each request alone, step after step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampler import Draw, sample, uniform

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.pytorch import choice, history, logit_rules, sampler
from mixtral_runtime.pytorch.random_stream import hashed_seeds, uniforms
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.sequence import Sequence

VOCAB = 2500  # more than the sampler looks at before it sorts them all
ROWS = 6
TOKENS = st.integers(0, VOCAB - 1)
BAD_WORDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.3, 1.0, 20.0)),
    top_k=st.sampled_from((0, 0, 1, 3, 128, 129, 1024)),
    top_p=st.sampled_from((1.0, 0.99, 0.6, 0.01)),
    min_p=st.sampled_from((0.0, 0.0, 0.05)),
    repetition_penalty=st.sampled_from((1.0, 1.0, 1.3, 0.5)),
    presence_penalty=st.sampled_from((0.0, 0.7)),
    frequency_penalty=st.sampled_from((0.0, 0.3, -2.0)),
    seed=st.integers(0, 2**64 - 1),
)
REQUESTS = st.builds(
    Request,
    prompt_ids=st.lists(st.integers(0, 3) | TOKENS, min_size=1, max_size=8),
    max_tokens=st.just(1000),
    sampling=PARAMS,
    end_id=st.none() | st.integers(0, 3),
    min_tokens=st.sampled_from((0, 3, 100)),
    bad_sequences=BAD_WORDS,
    logit_bias=st.dictionaries(st.integers(0, 5) | TOKENS, st.floats(-5, 5, width=32), max_size=4),
)


def logits_like(kind: str, generator: torch.Generator) -> torch.Tensor:
    """[ROWS, VOCAB]: `peaked` as a trained model's, `flat`, `equal` with many equals as bfloat16 has them."""
    logits = torch.randn(ROWS, VOCAB, generator=generator)
    logits[:, :4] += 3  # of these the prompts and bad words are made
    if kind == "peaked":
        return logits * 4
    return logits if kind == "flat" else (logits * 2).round() / 2


def run_beside_the_reference(wanted: list[Request], members: list[list[bool]], kind: str, seed: int) -> None:
    """members: for each step, which sequences are in it."""
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(ROWS, VOCAB, torch.device("cpu"))
    sequences = [Sequence(number, request, None) for number, request in enumerate(wanted)]
    for step in members:
        rows = [sequence for sequence, inside in zip(sequences, step, strict=False) if inside]
        if not rows:
            continue
        logits = logits_like(kind, generator)[: len(rows)]
        draws = [Draw(one.request, one.tokens[one.prompt_len :]) for one in rows]
        tokens = sampler.sample(logits, rows)
        assert tokens.tolist() == sample(logits, draws).tolist()
        sampler.append(tokens)
        for sequence, token in zip(rows, tokens.tolist(), strict=True):
            sequence.tokens.append(token)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(REQUESTS, min_size=1, max_size=ROWS),
    st.lists(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS), max_size=3),
    st.sampled_from(("peaked", "flat", "equal")),
    st.integers(0, 1000),
)
def test_whoever_comes_and_goes(wanted: list[Request], members: list[list[bool]], kind: str, seed: int) -> None:
    """Every membership for three steps, so that what is kept from step to step is used."""
    run_beside_the_reference(wanted, [step for step in [[True] * ROWS, *members] for _ in range(3)], kind, seed)


def test_more_sequences_than_fit_at_once_and_histories_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CAPACITY", 4)
    params = SamplingParams(0.8, repetition_penalty=1.2, presence_penalty=0.2, frequency_penalty=0.1)
    wanted = [Request([number % 4], 1000, params, bad_sequences=[[1, 2], [2]]) for number in range(3 * ROWS)]
    third = [[i // ROWS == part for i in range(3 * ROWS)] for part in range(3)]
    run_beside_the_reference(wanted, [third[part] for part in (0, 0, 1, 0, 2, 2, 1, 0) for _ in range(4)], "peaked", 1)


def test_a_step_that_failed_is_forgotten() -> None:
    request = Request([1, 2], 100, SamplingParams(1.0, repetition_penalty=3.0, presence_penalty=2.0))
    one = Sequence(1, request, None)
    sampler = Sampler(1, VOCAB, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    sampler.sample(logits_like("peaked", generator)[:1], [one])
    sampler.append(torch.tensor([7]))  # and the step is not committed
    sampler.forget()
    for _ in range(5):
        logits = logits_like("peaked", generator)[:1]
        tokens = sampler.sample(logits, [one])
        assert tokens.tolist() == sample(logits, [Draw(request, one.tokens[2:])]).tolist()
        sampler.append(tokens)
        one.tokens += tokens.tolist()


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 10**6)), min_size=1))
def test_random_numbers_of_a_batch_are_those_of_each_alone(draws: list[tuple[int, int]]) -> None:
    seeds, steps = zip(*draws, strict=True)
    found = uniforms(hashed_seeds(list(seeds)), torch.tensor(steps)).tolist()
    assert found == [uniform(seed, step) for seed, step in draws]
    assert all(0 <= value < 1 for value in found)


def test_random_numbers_differ_by_seed_and_step() -> None:
    seeds, steps = torch.arange(2500) // 50, torch.arange(2500) % 50
    values = uniforms(hashed_seeds(seeds.tolist()), steps)
    assert len(set(values.tolist())) == 2500
    assert abs(values.mean() - 0.5) < 0.03


def only_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    right = choice._equal_at
    monkeypatch.setattr(choice, "_equal_at", lambda logits, value, number: right(logits, value, number * 0))


def stale_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "uniforms", lambda hashed, steps: uniforms(hashed, steps * 0))


def few_candidates_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    right = choice._choose

    def faulty(*args: Any, everything: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return right(*args, everything=True)

    monkeypatch.setattr(choice, "_choose", faulty)


def history_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history.History, "append", lambda self, places, tokens: None)


def places_are_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    right = history.History.places
    monkeypatch.setattr(history.History, "places", lambda self, sequences: right(self, sequences)[::-1])


def a_ban_is_no_more_than_a_low_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_rules, "BANNED", -4.0)


@pytest.mark.parametrize(
    "fault",
    [
        only_the_first_of_equals,
        stale_steps,
        few_candidates_are_enough,
        history_stands_still,
        places_are_mixed_up,
        a_ban_is_no_more_than_a_low_logit,
    ],
)
def test_a_planted_fault_is_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    params = [
        SamplingParams(
            (0.0, 0.5, 2.0, 9.0)[row % 4],
            top_p=0.99,
            repetition_penalty=1 + row / 4,
            presence_penalty=row / 5,
            frequency_penalty=row / 3,
            seed=row,
        )
        for row in range(ROWS)
    ]
    wanted = [Request([row % 4], 1000, one, bad_sequences=[[1, 2], [2, 3], [0]]) for row, one in enumerate(params)]

    def run_each_kind() -> None:
        for kind in ("peaked", "flat", "equal"):
            run_beside_the_reference(wanted, [[True] * ROWS] * 20, kind, 0)

    with pytest.raises(AssertionError):
        run_each_kind()
