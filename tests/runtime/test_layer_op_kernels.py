"""Norms, rotary embedding, cache writes, routing and 16-bit products by the CPU kernels, against plain PyTorch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from kernel_paths import KERNEL_PATHS, on_path, threads
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.formats.dense import DenseExperts, DenseKernel, DenseLinear
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.layer_ops import KernelOps, PlainOps
from mixtral_runtime.pytorch.rotary import Rotary

CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Half a unit in the last place of the dtype, and what another order of float32 sums costs.
TOLERANCE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-6}
ROWS = [1, 2, 16, 17, 33, 70]
WIDTHS = [64, 1000, 33, 1]
EPSILON = 1e-5


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found: Tensor, exact: Tensor, tolerance: float) -> None:
    """Each row relative to its largest value."""
    bound = exact.double().abs().amax(dim=-1, keepdim=True) * tolerance
    assert ((found.double() - exact.double()).abs() <= bound).all()


def parts(rows: int) -> list[slice]:
    return [slice(0, 1), slice(rows - 1, rows), slice(rows // 3, rows // 2 + 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_are_those_of_float64(path: str, dtype: torch.dtype) -> None:
    ops = KernelOps(EPSILON, 2)
    for rows in ROWS:
        for width in WIDTHS:
            x, y = randn(rows, width, dtype=dtype), randn(rows, width, dtype=dtype, seed=1)
            weight = randn(width, seed=2)
            total, normed = ops.add_norm(x, y, weight)
            assert torch.equal(total, x + y)
            assert torch.equal(normed, ops.norm(total, weight))
            exact = PlainOps(EPSILON, 2).norm(total.double(), weight)
            assert_close(normed, exact, 2 * TOLERANCE[dtype])
            for part in parts(rows):
                assert torch.equal(ops.norm(total[part], weight), normed[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_routing_is_that_of_plain_pytorch(path: str, dtype: torch.dtype) -> None:
    for experts, top_k in ((8, 2), (5, 3), (1, 1), (64, 8)):
        kernel, plain = KernelOps(EPSILON, top_k), PlainOps(EPSILON, top_k)
        x, router = randn(33, 100, dtype=dtype), randn(experts, 100, seed=1)
        (chosen, weights), (chosen_plain, weights_plain) = kernel.route(x, router), plain.route(x, router)
        assert torch.equal(chosen, chosen_plain)
        torch.testing.assert_close(weights, weights_plain)
        alone = kernel.route(x[7:8], router)
        assert torch.equal(alone[0][0], chosen[7])
        assert torch.equal(alone[1][0], weights[7])


def test_of_equal_logits_the_lower_expert_wins(path: str) -> None:
    router = randn(8, 64)
    router[[1, 4, 6]] = router[3].expand(3, -1).clone()
    x = router[3:4].clone()
    assert KernelOps(EPSILON, 3).route(x, router)[0].tolist() == [[1, 3, 4]]


def test_an_overflowed_row_is_routed_to_experts_that_exist(path: str) -> None:
    x = torch.full((1, 64), torch.nan)
    chosen, weights = KernelOps(EPSILON, 2).route(x, randn(8, 64))
    assert chosen.tolist() == [[0, 1]]
    assert weights.isnan().all()


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_and_cache_are_plain_pytorchs_to_the_bit(
    path: str, checkpoint: Checkpoint, dtype: torch.dtype, fp8: bool
) -> None:
    tokens, heads, kv_heads, blocks = 37, 4, 2, 6
    for head_size in (16, 32, 48, 128):
        rotary = Rotary(head_size, 10000.0, 512, CPU)
        positions = torch.randint(0, 512, (tokens,), generator=torch.Generator().manual_seed(3))
        slots = torch.randperm(blocks * 32, generator=torch.Generator().manual_seed(4))[:tokens]
        qkv = 30 * randn(tokens, (heads + 2 * kv_heads) * head_size, dtype=dtype)
        qkv[5] *= 100  # saturates E4M3
        config = replace(checkpoint.config, head_size=head_size, num_key_value_heads=kv_heads)
        scales = None
        if fp8:
            config = replace(config, quantization=replace(config.quantization, kv_cache_quant_algo="FP8"))
            scales = torch.tensor([1.0, 0.37])
        kernel, plain = (KvCache(config, blocks, CPU, dtype, scales) for _ in range(2))
        queries = torch.ops.mixtral_cpu.rotate_and_cache(
            qkv, rotary.cos, rotary.sin, positions, slots, kernel.storage, scales, 1
        )
        by_head = qkv.view(tokens, -1, head_size)
        turned = rotary(by_head[:, : heads + kv_heads], positions)
        plain.write(1, slots, turned[:, heads:], by_head[:, heads + kv_heads :])
        assert torch.equal(queries, turned[:, :heads].flatten(1))
        assert torch.equal(kernel.storage, plain.storage)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("out", "size"), [(16, 64), (160, 1000), (17, 33), (1, 32), (33, 1), (250, 1024)])
def test_products_are_exact_and_a_rows_own(path: str, out: int, size: int, dtype: torch.dtype) -> None:
    weight = randn(out, size, dtype=dtype, seed=1)
    linear = DenseKernel(weight)
    for rows in ROWS:
        x = randn(rows, size, dtype=dtype)
        together = linear(x)
        bound = x.double().abs() @ weight.double().abs().T * (2e-6 + TOLERANCE[dtype])
        assert ((together.double() - x.double() @ weight.double().T).abs() <= bound).all()
        for part in parts(rows):
            assert torch.equal(linear(x[part]), together[part])
        with threads(3):
            assert torch.equal(linear(x), together)


@pytest.mark.parametrize("size", [64, 33])
def test_nothing_beside_the_weight_is_multiplied(path: str, size: int) -> None:
    """The weight is a view into NaN, as a mapped file may hold anything around it."""
    around = torch.full((19 * size + 200,), torch.nan, dtype=torch.bfloat16)
    weight = around[100 : 100 + 19 * size].view(19, size)
    weight.copy_(randn(19, size))
    assert DenseKernel(weight)(randn(3, size, dtype=torch.bfloat16)).isfinite().all()


def test_vectors_of_both_widths_give_the_same_bits() -> None:
    found = []
    for path in KERNEL_PATHS[:2]:
        with on_path(path):
            x, weight = randn(9, 333, dtype=torch.float16), randn(35, 333, dtype=torch.float16, seed=1)
            found.append((DenseKernel(weight)(x), KernelOps(EPSILON, 2).norm(x, randn(333))))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 96), (100, 72), (64, 33)])
def test_fused_experts_are_close_to_one_by_one(path: str, hidden: int, intermediate: int, dtype: torch.dtype) -> None:
    count, top_k = 6, 2
    fc = randn(count, 2 * intermediate, hidden, dtype=dtype, seed=1) / 8
    proj = randn(count, hidden, intermediate, dtype=dtype, seed=2) / 8
    exact = Experts([DenseLinear(w) for w in fc.double()], [DenseLinear(w) for w in proj.double()])
    fused = DenseExperts(fc, proj)
    for rows in ROWS:
        x = randn(rows, hidden, dtype=dtype)
        routed = PlainOps(EPSILON, top_k).route(x, randn(count, hidden, seed=3))
        together = fused(x, *routed)
        assert_close(together, exact(x.double(), *routed), 4 * TOLERANCE[dtype])
        for part in parts(rows):
            assert torch.equal(fused(x[part], routed[0][part], routed[1][part]), together[part])
        with threads(2):
            assert torch.equal(fused(x, *routed), together)


@pytest.mark.parametrize("fault", ["gate before up", "weights swapped", "an expert's neighbour", "one bit"])
def test_the_comparison_of_experts_can_fail(path: str, fault: str) -> None:
    dtype, count, hidden, inner = torch.bfloat16, 4, 64, 96
    fc, proj = randn(count, 2 * inner, hidden, dtype=dtype) / 8, randn(count, hidden, inner, dtype=dtype, seed=1) / 8
    exact = Experts([DenseLinear(w) for w in fc.double()], [DenseLinear(w) for w in proj.double()])
    x = randn(20, hidden, dtype=dtype, seed=2)
    chosen, weights = PlainOps(EPSILON, 2).route(x, randn(count, hidden, seed=3))
    expected = exact(x.double(), chosen, weights)
    if fault == "gate before up":
        fc = fc.view(count, 2, inner, hidden).flip(1).reshape(fc.shape)
    elif fault == "weights swapped":
        weights = weights.flip(1)
    elif fault == "an expert's neighbour":
        chosen = (chosen + 1) % count
    else:
        proj.view(torch.int16)[:, 5, 7] ^= 0x0400  # of the exponent
    with pytest.raises(AssertionError):
        assert_close(DenseExperts(fc, proj)(x, chosen, weights), expected, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("make", [list, lambda ids: torch.tensor(ids).numpy()], ids=["lists", "arrays"])
def test_a_batch_knows_where_each_token_goes(make: Callable[[list[int]], list[int]]) -> None:
    builder = BatchBuilder()
    builder.add(make([7, 8, 9]), 31, make([4, 2, 6]))
    builder.add(make([5]), 64, make([0, 1, 3]))
    batch = builder.build(CPU)
    assert batch.token_ids.tolist() == [7, 8, 9, 5]
    assert batch.positions.tolist() == [31, 32, 33, 64]
    assert batch.slots.tolist() == [4 * 32 + 31, 2 * 32, 2 * 32 + 1, 3 * 32]
    assert batch.last_rows.tolist() == [2, 3]
    assert [(span.rows, span.start, span.end, span.blocks.tolist()) for span in batch.spans] == [
        (slice(0, 3), 31, 34, [4, 2]),
        (slice(3, 4), 64, 65, [0, 1, 3]),
    ]
