"""CPU kernels of FP8 and 4-bit weights, a whole mixture of experts: equal to its parts, and faults in it are seen."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import KERNEL_PATHS, on_path, threads
from low_bit_weights import FORMATS, Stack, fused, make_stack, random_stack
from reference_model import reference_model
from torch import Tensor

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.quantize import quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.pytorch.experts import Experts, route
from mixtral_runtime.pytorch.model import MixtralModel

DEMO_MODEL = Path(__file__).parents[2] / "models" / "tiny-mixtral"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Of the largest answer of a token. Plain PyTorch, with which it is compared, rounds to 16 bits more often.
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 2e-6}
# FP8: the last bit of an activation may decide to which E4M3 it is rounded, a 16th up or down. In float32 that happens
# to few tokens.
FP8_TOLERANCE = 0.12
FP8_TOKENS_AS_CLOSE = 0.8
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


def routed(
    tokens: int, hidden: int, experts: int, top_k: int, dtype: torch.dtype, seed: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """x, chosen experts and their weights; the first experts are chosen most often, the last hardly ever."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator) - 0.7 * torch.arange(experts)
    return (torch.randn(tokens, hidden, generator=generator).to(dtype), *route(logits, top_k))


def plain_experts(fc: Stack, proj: Stack, dtype: torch.dtype) -> Experts:
    fc_linears, proj_linears = ([stack.plain(dtype, i) for i in range(stack.experts)] for stack in (fc, proj))
    return Experts(fc_linears, proj_linears)


def assert_close_to_plain(fc: Stack, proj: Stack, call: Callable[..., Tensor], arguments: Any) -> None:
    dtype = arguments[0].dtype
    expected = plain_experts(fc, proj, dtype)(*arguments).double()
    error = (call(*arguments).double() - expected).abs().amax(-1) / expected.abs().amax(-1)  # [tokens]
    if fc.name != "fp8":
        assert (error <= TOLERANCE[dtype]).all()
    else:
        assert (error <= FP8_TOLERANCE).all()
        if dtype == torch.float32:
            assert (error <= TOLERANCE[dtype]).double().mean() >= FP8_TOKENS_AS_CLOSE


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(data=st.data())
def test_all_at_once_is_close_to_one_by_one(path: str, name: str, data: st.DataObject) -> None:
    sizes = st.integers(64, 300) if name == "fp8" else st.integers(1, 3).map(lambda n: 128 * n)
    hidden, intermediate = data.draw(sizes), data.draw(sizes)
    experts = data.draw(st.integers(2, 4))
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(10, 40))
    fc, proj = make_stack(name, experts, 2 * intermediate, hidden), make_stack(name, experts, hidden, intermediate, 1)
    arguments = routed(tokens, hidden, experts, data.draw(st.integers(1, 2)), dtype)
    assert_close_to_plain(fc, proj, fused(fc, proj, dtype), arguments)


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(data=st.data())
def test_a_token_is_the_same_bit_for_bit_in_every_batch(path: str, name: str, data: st.DataObject) -> None:
    """Whatever other tokens its experts have: one row at a time, part of a tile or several tiles."""
    hidden, intermediate = (96, 200) if name == "fp8" else (128, 256)
    fc, proj = make_stack(name, 4, 2 * intermediate, hidden), make_stack(name, 4, hidden, intermediate, 1)
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 300))
    call, arguments = fused(fc, proj, dtype), routed(tokens, hidden, 4, 2, dtype)
    together = call(*arguments)
    for size in data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=2)):
        parts = [call(*part) for part in zip(*(torch.split(one, size) for one in arguments), strict=True)]
        assert torch.equal(torch.cat(parts), together)
    with threads(3):
        assert torch.equal(call(*arguments), together)


@pytest.mark.parametrize("name", FORMATS)
def test_no_tokens_give_no_rows(path: str, name: str) -> None:
    fc, proj = make_stack(name, 2, 256, 128), make_stack(name, 2, 128, 128)
    assert fused(fc, proj, torch.bfloat16)(*routed(0, 128, 2, 1, torch.bfloat16)).shape == (0, 128)


@pytest.mark.parametrize("name", FORMATS)
def test_experts_that_nobody_chose_are_not_read(path: str, name: str) -> None:
    """They may lie on a disk. Their scales are not a number here."""
    fc, proj = make_stack(name, 4, 256, 128), make_stack(name, 4, 128, 128, 1)
    x, _, weights = routed(20, 128, 4, 2, torch.bfloat16)
    chosen = torch.tensor([0, 2]).expand(20, 2)

    def spoil(scales: Tensor) -> Tensor:
        scales[[1, 3]] = torch.nan
        return scales

    spoilt = [stack.with_tensor("weights_scaling_factor", spoil) for stack in (fc, proj)]
    found = fused(spoilt[0], spoilt[1], torch.bfloat16)(x, chosen, weights)
    assert torch.equal(found, fused(fc, proj, torch.bfloat16)(x, chosen, weights))


@pytest.mark.parametrize("name", FORMATS)
def test_an_expert_of_mixtral_8x7b(path: str, name: str) -> None:
    fc, proj = random_stack(name, 28672, 4096), random_stack(name, 4096, 14336)
    call = fused(fc, proj, torch.bfloat16)
    x = torch.randn(5, 4096, generator=torch.Generator().manual_seed(4)).bfloat16()
    arguments = (x, torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1))
    found = call(*arguments)
    assert torch.equal(call(*(one[:1] for one in arguments)), found[:1])
    up, gate = fc.linear(torch.float32)(x.float()).chunk(2, dim=-1)
    inner = (torch.nn.functional.silu(gate) * up).bfloat16()
    expected = proj.linear(torch.bfloat16)(inner).double()
    assert (found.double() - expected).abs().max() <= 2.0**-6 * expected.abs().max()


def flip_bit(weight: Tensor) -> Tensor:
    weight.view(torch.int8)[1, 5, 70] ^= 0b0010_0000
    return weight


def swap_nibbles(weight: Tensor) -> Tensor:
    return (weight << 4) | ((weight >> 4) & 15)


def swap_halves(tensor: Tensor) -> Tensor:
    """Gate and up projection."""
    return torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)


FAULTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "scales of two experts swapped": ("weights_scaling_factor", lambda scales: scales[[1, 0, 2]]),
    "experts in another order": ("weight", lambda weight: weight[[0, 2, 1]].contiguous()),
    "one bit in a packed word": ("weight", flip_bit),
    "gate and up projection swapped": ("weight", swap_halves),
}
FOUR_BIT_FAULTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "nibbles the other way round": ("weight", swap_nibbles),
    "scales of two rows swapped": ("weights_scaling_factor", lambda scales: scales[:, [1, 0, *range(2, 512)]]),
    "scales of two groups swapped": ("weights_scaling_factor", lambda scales: scales[..., [1, 0]]),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name in FORMATS for fault in (*FAULTS, *(FOUR_BIT_FAULTS if name != "fp8" else ()))],
)
def test_the_comparison_sees_a_planted_fault(path: str, name: str, fault: str) -> None:
    """float32, where little else hides it. Without the fault the same comparison passes."""
    fc, proj = make_stack(name, 3, 512, 256), make_stack(name, 3, 256, 256, 1)
    arguments = routed(40, 256, 3, 2, torch.float32)
    assert_close_to_plain(fc, proj, fused(fc, proj, torch.float32), arguments)
    faulty = fc.with_tensor(*(FAULTS | FOUR_BIT_FAULTS)[fault])
    with pytest.raises(AssertionError):
        assert_close_to_plain(fc, proj, fused(faulty, proj, torch.float32), arguments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("awq") / "checkpoint"
    quantize_model(DEMO_MODEL, directory, "awq", calibration=CalibrationOptions(samples=16))
    return Checkpoint.open(directory)


def test_the_demo_models_logits_equal_transformers_with_4_bit_weights(path: str, checkpoint: Checkpoint) -> None:
    prompt = [(7 * i * i + 3) % 1000 for i in range(40)]
    with torch.inference_mode():
        expected = reference_model(checkpoint)(torch.tensor([prompt])).logits[0]
    exact = MixtralModel.load(checkpoint, "cpu", torch.float32).forward_logits(prompt)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)
    rounded = MixtralModel.load(checkpoint, "cpu", torch.bfloat16).forward_logits(prompt).log_softmax(-1)
    divergence = (expected.softmax(-1) * (expected.log_softmax(-1) - rounded)).sum(-1)  # Kullback-Leibler, per token
    assert divergence.mean() < 0.05
