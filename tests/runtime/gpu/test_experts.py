"""The mixture of experts by the GPU kernels: near float64's in every encoding, and nothing read that nobody chose."""

import pytest
import torch
from gpu_products import ENCODINGS, TOLERANCE, Example, example, mixture, relative_error
from torch import Tensor

from mixtral_runtime.kernels.gpu.experts import GpuExperts
from mixtral_runtime.kernels.gpu.matmul_config import ONE_BY_ONE
from mixtral_runtime.pytorch.experts import route

EXPERTS = 3


def routed(tokens: int, hidden: int, dtype: torch.dtype, top_k: int = 2, seed: int = 3) -> tuple[Tensor, ...]:
    """x, chosen experts and their weights; the first expert is chosen most often, the last hardly ever."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, EXPERTS, generator=generator) - torch.arange(EXPERTS)
    return (torch.randn(tokens, hidden, generator=generator).to(dtype), *route(logits, top_k))


def examples(name: str, hidden: int, inner: int, dtype: torch.dtype, sm: int = 90) -> tuple[Example, Example]:
    return (
        example(name, EXPERTS, 2 * inner, hidden, dtype, sm),
        example(name, EXPERTS, hidden, inner, dtype, sm, seed=1),
    )


def error(fc: Example, proj: Example, arguments: tuple[Tensor, ...]) -> float:
    x, experts, weights = arguments
    found = GpuExperts(fc.weight, proj.weight)(x, experts, weights)
    assert found.dtype == x.dtype
    return relative_error(found, mixture(fc, proj, x, experts, weights))


@pytest.mark.parametrize(("name", "sm"), [*((name, 90) for name in ENCODINGS), ("fp8", 80), ("awq", 80)])
def test_one_token_few_and_many(name: str, sm: int) -> None:
    fc, proj = examples(name, 128, 128, torch.float16, sm)
    for tokens in (1, 26):
        assert error(fc, proj, routed(tokens, 128, torch.float16)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("name", ENCODINGS)
def test_sizes_that_no_tile_divides(name: str) -> None:
    hidden, inner = (384, 128) if name in ("awq", "gptq") else (88, 72)
    fc, proj = examples(name, hidden, inner, torch.bfloat16)
    for tokens in (1, 3):
        # FP8: what is cut off instead of rounded between the products may become another E4M3.
        limit = 0.05 if name == "fp8" else TOLERANCE[torch.bfloat16]
        assert error(fc, proj, routed(tokens, hidden, torch.bfloat16)) < limit


@pytest.mark.parametrize("top_k", [1, 3])
def test_any_number_of_choices(top_k: int) -> None:
    fc, proj = examples("int8", 64, 64, torch.float16)
    for tokens in (1, 5):
        assert error(fc, proj, routed(tokens, 64, torch.float16, top_k)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("name", ENCODINGS)
def test_experts_that_nobody_chose_are_not_read(name: str, tokens: int) -> None:
    fc, proj = examples(name, 128, 128, torch.float16)
    x, _, weights = routed(tokens, 128, torch.float16)
    chosen = torch.tensor([0, 2]).expand(tokens, 2)
    call = GpuExperts(fc.weight, proj.weight)
    before = call(x, chosen, weights)
    for weight in (fc.weight, proj.weight):
        if weight.scales is None:
            weight.data[1] = torch.nan
        else:
            weight.scales[1] = torch.nan
    assert torch.equal(call(x, chosen, weights), before)


@pytest.mark.parametrize("limit", [0, 3])
@pytest.mark.parametrize("name", ["fp8", "awq"])
def test_few_tokens_may_take_either_kernel(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is quicker is a number in a table."""
    fc, proj = examples(name, 128, 128, torch.float16)
    monkeypatch.setitem(ONE_BY_ONE, fc.weight.encoding, limit)
    for tokens in (1, 3):
        assert error(fc, proj, routed(tokens, 128, torch.float16)) < TOLERANCE[torch.float16]


def test_no_tokens_give_no_rows() -> None:
    fc, proj = examples("int8", 64, 64, torch.float16)
    empty = (torch.empty(0, 64, dtype=torch.float16), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2))
    assert GpuExperts(fc.weight, proj.weight)(*empty).shape == (0, 64)


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("fault", ["gate first", "experts exchanged", "weights by the wrong slot"])
def test_a_planted_fault_is_seen(fault: str, tokens: int) -> None:
    fc, proj = examples("int8", 64, 64, torch.float16)
    x, experts, weights = routed(tokens, 64, torch.float16)
    exact = mixture(fc, proj, x, experts, weights)
    if fault == "gate first":
        fc.weight.data.copy_(fc.weight.data.roll(64, dims=1))
    elif fault == "experts exchanged":
        experts = (experts + 1) % EXPERTS
    else:
        weights = weights.flip(1)
    found = GpuExperts(fc.weight, proj.weight)(x, experts, weights)
    assert relative_error(found, exact) > 10 * TOLERANCE[torch.float16]
