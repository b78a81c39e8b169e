"""Norms, embedding lookup and routing by the GPU kernels, in Triton's interpreter, against float64."""

import pytest
import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.kernels.gpu import layer_ops
from mixtral_runtime.pytorch import layer_ops as choice_of_ops
from mixtral_runtime.pytorch.layer_ops import GpuOps, PlainOps
from mixtral_runtime.pytorch.model import MixtralModel

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-6}  # half a unit in the last place
WIDTHS = [64, 1000, 33, 4096]
EPSILON = 1e-5


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_sum(total: Tensor, x: Tensor, y: Tensor) -> None:
    """The interpreter rounds to bfloat16 by cutting off, a GPU to the nearest."""
    exact = x + y
    if x.dtype == torch.bfloat16:
        assert ((total.float() - exact.float()).abs() <= exact.float().abs() * 2**-7).all()
    else:
        assert torch.equal(total, exact)


def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    return PlainOps(EPSILON, 1).norm(x.double(), weight.double())


def assert_close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Each row relative to its length."""
    assert found.dtype == dtype
    assert ((found.double() - exact).norm(dim=-1) <= 1.5 * TOLERANCE[dtype] * exact.norm(dim=-1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_are_those_of_float64(width: int, dtype: torch.dtype) -> None:
    ops = GpuOps(EPSILON, 2)
    x, y, weight = randn(5, width, dtype=dtype), randn(5, width, dtype=dtype, seed=1), randn(width, seed=2)
    assert_close(ops.norm(x, weight), exact_norm(x, weight), dtype)
    total, normed = ops.add_norm(x, y, weight)
    assert_sum(total, x, y)
    assert torch.equal(normed, ops.norm(total, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_the_embedding_is_looked_up_and_normed(dtype: torch.dtype, stored: torch.dtype) -> None:
    embedding, weight = randn(50, 100, dtype=stored), randn(100, seed=1)
    token_ids = torch.tensor([49, 0, 7, 7])
    ops = GpuOps(EPSILON, 2)
    x, normed = ops.embed_norm(token_ids, embedding, weight, dtype)
    assert_sum(x, embedding[token_ids].to(dtype), torch.zeros((), dtype=dtype))
    assert torch.equal(normed, ops.norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (5, 3), (1, 1), (64, 8), (17, 17)])
def test_one_launch_adds_norms_and_routes(experts: int, top_k: int, dtype: torch.dtype) -> None:
    ops = GpuOps(EPSILON, top_k)
    x, y, weight = randn(4, 300, dtype=dtype), randn(4, 300, dtype=dtype, seed=1), randn(300, seed=2)
    for router in (randn(experts, 300, seed=3), randn(experts, 300, seed=3, dtype=torch.bfloat16)):
        total, normed, chosen, weights = ops.add_norm_route(x, y, weight, router)
        assert_sum(total, x, y)
        assert torch.equal(normed, ops.norm(total, weight))
        chosen_plain, weights_plain = PlainOps(EPSILON, top_k).route(normed, router.float())
        assert chosen.dtype == torch.int64
        assert torch.equal(chosen, chosen_plain)
        torch.testing.assert_close(weights, weights_plain)
        alone = ops.route(normed, router)
        assert torch.equal(alone[0], chosen)
        assert torch.equal(alone[1], weights)


def test_of_equal_logits_the_lower_expert_wins() -> None:
    router = randn(8, 64)
    router[[1, 4, 6]] = router[3].expand(3, -1).clone()
    assert GpuOps(EPSILON, 3).route(router[3:4].clone(), router)[0].tolist() == [[1, 3, 4]]


def test_an_overflowed_row_is_routed_to_experts_that_exist() -> None:
    chosen, weights = GpuOps(EPSILON, 2).route(torch.full((1, 64), torch.nan), randn(8, 64))
    assert chosen.tolist() == [[0, 1]]
    assert weights.isnan().all()


def test_a_router_is_kept_in_half_the_bytes_only_where_nothing_is_lost() -> None:
    router = randn(8, 64)
    assert layer_ops.compact(router).dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        compacted = layer_ops.compact(router.to(dtype).float())
        assert compacted.dtype == dtype
        assert torch.equal(compacted.float(), router.to(dtype).float())


def test_a_model_of_them_has_the_same_logits(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [1, 5, 9, 2, 30]
    plain = MixtralModel.load(checkpoint, "cpu", torch.float32).forward_logits(prompt)
    monkeypatch.setattr(choice_of_ops, "gpu_kernels_serve", lambda device: True)
    model = MixtralModel.load(checkpoint, "cpu", torch.float32)
    assert isinstance(model._ops, GpuOps)
    torch.testing.assert_close(model.forward_logits(prompt), plain, rtol=1e-3, atol=1e-4)


def test_no_tokens_are_no_work() -> None:
    ops = GpuOps(EPSILON, 2)
    assert ops.norm(torch.empty(0, 64), randn(64)).shape == (0, 64)
