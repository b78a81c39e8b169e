"""The sampler of a GPU, in Triton's interpreter, chooses what a plain one chooses for each request alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampler import Draw, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.kernels.gpu import sampling, sampling_draw
from mixtral_runtime.pytorch import history
from mixtral_runtime.pytorch.gpu_sampler import GpuSampler
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.sequence import Sequence

VOCAB, ROWS = 300, 3
CPU = torch.device("cpu")
RANDOM = SamplingParams(temperature=1.0)
TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.05, 0.7, 1.0, 20.0, 100.0)),
    top_k=st.sampled_from((0, 0, 0, 1, 2, 40, 250, 1024)),
    top_p=st.sampled_from((1.0, 1.0, 0.99, 0.6, 0.01)),
    min_p=st.sampled_from((0.0, 0.0, 0.05)),
    repetition_penalty=st.sampled_from((1.0, 1.3, 0.5)),
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
    bad_sequences=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4),
    logit_bias=st.dictionaries(st.integers(0, 5) | TOKENS, st.floats(-5, 5, width=32), max_size=4),
)
SMALL = sampling.Config(piece=128, block=64, candidates=32)  # more than one of each in a row


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "config", lambda: SMALL)
        yield


def logits_like(kind: str, generator: torch.Generator) -> Tensor:
    """[ROWS, VOCAB]: `peaked` as a trained model's, `flat`, `equal` with many equals as bfloat16 has them."""
    logits = torch.randn(ROWS, VOCAB, generator=generator)
    logits[:, :4] += 3  # of these the prompts and bad words are made
    if kind == "peaked":
        return logits * 4
    return logits if kind == "flat" else (logits * 2).round() / 2


def run_beside_the_reference(wanted: list[Request], members: list[list[bool]], kind: str, seed: int) -> None:
    """members: for each step, which sequences are in it."""
    generator = torch.Generator().manual_seed(seed)
    sampler = GpuSampler(ROWS, VOCAB, CPU)
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


def sample_alone(logits: Tensor, params: list[SamplingParams]) -> tuple[list[int], list[int]]:
    """One row of logits, drawn with each of the params on a GPU and on a CPU."""
    sequences = [Sequence(number, Request([0], 10, one), None) for number, one in enumerate(params)]
    rows = logits.expand(len(params), -1)
    found = [make(len(params), rows.shape[1], CPU).sample(rows, sequences) for make in (GpuSampler, Sampler)]
    return found[0].tolist(), found[1].tolist()


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    st.lists(REQUESTS, min_size=1, max_size=ROWS),
    st.lists(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS), max_size=1),
    st.sampled_from(("peaked", "flat", "equal")),
    st.integers(0, 1000),
)
def test_whoever_comes_and_goes(wanted: list[Request], members: list[list[bool]], kind: str, seed: int) -> None:
    """Every membership for two steps, so that what is kept from step to step is used."""
    run_beside_the_reference(wanted, [step for step in [[True] * ROWS, *members] for _ in range(2)], kind, seed)


def test_histories_that_grow_and_places_that_change_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CAPACITY", 4)
    params = SamplingParams(0.8, repetition_penalty=1.2, presence_penalty=0.2, frequency_penalty=0.1)
    wanted = [Request([number % 4], 1000, params, bad_sequences=[[1, 2], [2]]) for number in range(4)]
    members = [[part == number for number in range(4)] for part in (0, 0, 1, 2, 3, 0, 0, 0)]  # more than ROWS
    run_beside_the_reference(wanted, members, "peaked", 1)


def test_a_bad_sequence_longer_than_a_window_and_last_tokens_shared() -> None:
    prompt = list(range(40))
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 5
    for changed, expected in ((0, 0), (3, 7)):
        bad = [[*prompt, 7], [1, 7], [39 + changed, 7]]
        bad[0][20] += changed
        [token] = GpuSampler(1, VOCAB, CPU).sample(logits, [Sequence(1, Request(prompt, 9, bad_sequences=bad), None)])
        assert token == expected


@pytest.mark.parametrize(("equals", "top_k"), [(1, 0), (1, 299), (40, 2), (40, 70), (VOCAB, 0), (VOCAB, 33)])
def test_of_equals_the_lower_ids_are_kept(equals: int, top_k: int) -> None:
    """More equals than a search keeps in registers, with another number of them above and below."""
    logits = torch.arange(VOCAB).remainder(7).float() - 20
    logits[torch.arange(VOCAB).remainder(VOCAB // equals) == 0] = 1.0
    logits[5] = 2.0
    params = [replace(RANDOM, top_k=top_k, seed=seed, temperature=3.0) for seed in range(2)]
    found, expected = sample_alone(logits, params)
    assert found == expected


def test_filters_at_their_ends() -> None:
    ends: list[dict[str, Any]] = [
        {"min_p": 1.0},
        {"min_p": 0.5, "top_k": 3},
        {"top_p": 1e-9},
        {"top_p": 0.999999},
        {"temperature": 1e-3},
        {"temperature": 100.0, "top_p": 0.5},
        {"temperature": 50.0, "min_p": 0.99},
        {"top_k": 1024, "top_p": 0.3},
    ]
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 3
    logits[logits.abs() < 0.5] = -0.0
    logits[::9] = 0.0  # equal to -0.0
    params = [replace(RANDOM, seed=number, **fields) for number, fields in enumerate(ends)]
    found, expected = sample_alone(logits, params)
    assert found == expected


def test_what_is_banned_is_not_drawn_even_when_all_is_banned() -> None:
    request = Request([0], 9, SamplingParams(2.0), bad_sequences=[[token] for token in range(128)])
    row = Sequence(1, request, None)
    [token] = GpuSampler(1, VOCAB, CPU).sample(torch.zeros(1, VOCAB), [row])
    assert token >= 128
    small = torch.randn(1, 128)
    assert GpuSampler(1, 128, CPU).sample(small, [row]).tolist() == Sampler(1, 128, CPU).sample(small, [row]).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_overflowed_are_told_and_the_others_are_right(dtype: torch.dtype) -> None:
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(5)).to(dtype)
    logits[1, 200], logits[2, 7], logits[3] = torch.nan, torch.inf, -torch.inf
    before = logits.clone()
    params = [RANDOM] * 5 + [SamplingParams()]
    sequences = [Sequence(number, Request([0], 9, one), None) for number, one in enumerate(params)]
    choice = GpuSampler(6, VOCAB, CPU).choose(logits, sequences)
    assert choice.report[1].tolist() == [1, 0, 0, 0, 1, 1]
    assert all(0 <= token < VOCAB for token in choice.tokens.tolist())
    plain = Sampler(6, VOCAB, CPU).choose(logits.float(), sequences)
    assert torch.equal(plain.report[:, 4:], choice.report[:2, 4:])
    assert plain.report[1].tolist() == choice.report[1].tolist()
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())  # they are not changed


def test_a_token_that_ends_its_row_is_told() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[:, 9] = 1
    requests = [
        Request([0], 9),
        Request([0], 9, end_id=9),
        Request([0], 9, end_id=8, stop_sequences=[[1], [9, 9], [2], [9]]),
        Request([0], 9, end_id=8, stop_sequences=[[9, 1], [1, 9]]),
    ]
    sequences = [Sequence(number, request, None) for number, request in enumerate(requests)]
    assert GpuSampler(4, VOCAB, CPU).choose(logits, sequences).report[2].tolist() == [0, 1, 1, 0]


def test_a_step_that_failed_is_forgotten() -> None:
    request = Request([1, 2], 100, SamplingParams(1.0, repetition_penalty=3.0, presence_penalty=2.0))
    one = Sequence(1, request, None)
    sampler = GpuSampler(1, VOCAB, CPU)
    generator = torch.Generator().manual_seed(0)
    first = logits_like("peaked", generator)[:1]
    tokens = sampler.sample(first, [one])
    sampler.append(torch.tensor([7]))  # and the step is not committed
    sampler.forget()
    assert torch.equal(sampler.sample(first, [one]), tokens)


def test_warming_up_leaves_nothing_behind() -> None:
    warm, cold = GpuSampler(1, VOCAB, CPU), GpuSampler(1, VOCAB, CPU)
    warm.warm_up()
    request = Request([1], 9, SamplingParams(repetition_penalty=2.0), bad_sequences=[[1, 5]])
    logits, rows = torch.randn(1, VOCAB), [Sequence(0, request, None)]
    assert warm.sample(logits, rows).tolist() == cold.sample(logits, rows).tolist()


class NoHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host would wait for the device, or a shape would depend on what is computed."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal.default", "_to_copy")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.FORBIDDEN), func
        return func(*args, **(kwargs or {}))


def everything_asked() -> list[Sequence]:
    params = SamplingParams(0.9, top_p=0.9, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.1)
    requests = [
        Request([0], 9),
        Request([1, 2], 99, params, end_id=2, min_tokens=3, bad_sequences=[[1, 2], [3]], logit_bias={3: 1.0}),
        Request([1], 99, SamplingParams(1.0, top_k=40)),
    ]
    return [Sequence(number, request, None) for number, request in enumerate(requests)]


def steps_without_the_host(sampler: GpuSampler | Sampler) -> None:
    sequences, logits = everything_asked(), torch.randn(3, VOCAB)
    sampler.append(sampler.sample(logits, sequences))
    with NoHost():  # type: ignore[no-untyped-call]
        for _ in range(2):
            sampler.append(sampler.choose(logits, sequences).tokens)


def test_nothing_waits_for_the_host_while_the_same_sequences_run() -> None:
    steps_without_the_host(GpuSampler(3, VOCAB, CPU))


def test_waiting_for_the_host_is_seen() -> None:
    with pytest.raises(AssertionError):
        steps_without_the_host(Sampler(3, VOCAB, CPU))


def the_largest_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "draw", lambda token, *args: token)


def equals_are_one(patch: pytest.MonkeyPatch) -> None:
    right = sampling_draw._equal
    patch.setattr(sampling_draw, "_equal", lambda token, value, rank, *args: right(token, value, rank * 0, *args))


def history_stands_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GpuSampler, "append", lambda self, tokens: None)


@pytest.mark.parametrize("fault", [the_largest_is_enough, equals_are_one, history_stands_still])
def test_a_planted_fault_is_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    params = [
        SamplingParams(0.5 + row, top_p=0.99, repetition_penalty=1 + row / 4, presence_penalty=row / 5, seed=row)
        for row in range(ROWS)
    ]
    wanted = [Request([row % 4], 1000, one, bad_sequences=[[1, 2], [2, 3], [0]]) for row, one in enumerate(params)]
    with pytest.raises(AssertionError):
        run_beside_the_reference(wanted, [[True] * ROWS] * 3, "equal", 0)
