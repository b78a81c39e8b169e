"""CPU kernels of int8, one matrix at a time: on every path bit for bit the product that int64 sums give."""

import ctypes
import mmap
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import KERNEL_PATHS, on_path, threads
from torch import Tensor

from mixtral_runtime.formats.int8 import KERNEL_MAX_IN, Int8Kernel, Int8Linear, kernel_takes

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LARGEST = {torch.bfloat16: 32639, torch.float16: 32639, torch.float32: 127 * 65536}  # integer of a row's largest value
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 3e-7}  # of the result
# Rows from which the kernels block otherwise: vectors of four, tiles of 16, three tiles.
ROW_COUNTS = (1, 2, 3, 4, 5, 15, 16, 17, 32, 47, 48, 49, 65)


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


def random_matrix(out_features: int, in_features: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Weights over all 256 values, and scales [out] float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (out_features, in_features), generator=generator, dtype=torch.int8)
    return weight, torch.rand(out_features, generator=generator) * 0.01 + 0.001


def random_rows(rows: int, in_features: int, dtype: torch.dtype, seed: int = 2) -> Tensor:
    return torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product_in_int64(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """What the kernel is defined to give. Sums of these sizes are exact in float64 as they are in int64."""
    largest = np.float32(LARGEST[x.dtype])
    rows = x.float().numpy()
    amax = np.abs(rows).max(axis=1, keepdims=True)
    integers = np.rint(rows * (largest / amax))
    sums = (integers.astype(np.float64) @ weight.double().numpy().T).astype(np.float32)
    return torch.from_numpy(sums * ((amax / largest) * scales.numpy())).to(x.dtype)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 70),
    out_features=st.integers(1, 90),
    in_features=st.one_of(st.integers(1, 200), st.integers(1000, 1100), st.just(8200)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_products_of_any_shape_are_exact(
    path: str, rows: int, out_features: int, in_features: int, dtype: torch.dtype, seed: int
) -> None:
    weight, scales = random_matrix(out_features, in_features, seed)
    x = random_rows(rows, in_features, dtype, seed)
    assert torch.equal(Int8Kernel(weight, scales)(x), product_in_int64(x, weight, scales))


@pytest.fixture(scope="module", params=[(28672, 4096), (4096, 14336)], ids=["up and gate", "down"])
def matrix_of_8x7b(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return random_matrix(*request.param)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_of_mixtral_8x7b(path: str, matrix_of_8x7b: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    weight, scales = matrix_of_8x7b
    x = random_rows(20, weight.shape[1], dtype)
    found = Int8Kernel(weight, scales)(x)
    some = torch.arange(0, len(weight), 197)
    assert torch.equal(found[:, some], product_in_int64(x, weight[some], scales[some]))
    exact = x.double() @ weight[some].double().T * scales[some].double()
    # Beside the result's rounding each activation's, by half a step of the row's largest.
    step = x.double().abs().amax(1, keepdim=True) / LARGEST[dtype]
    noise = step * weight[some].double().norm(dim=1) * scales[some].double()
    assert ((found[:, some].double() - exact).abs() <= exact.abs() * ROUNDING[dtype] + 2 * noise).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_among_any_others(path: str, dtype: torch.dtype) -> None:
    weight, scales = random_matrix(131, 1100)
    linear, x = Int8Kernel(weight, scales), random_rows(max(ROW_COUNTS), 1100, dtype)
    alone = torch.cat([linear(row[None]) for row in x])
    for count in ROW_COUNTS:
        assert torch.equal(linear(x[:count]), alone[:count]), count
    assert torch.equal(linear(x.flip(0)).flip(0), alone)


@pytest.mark.parametrize("count", [1, 3])
def test_bits_do_not_depend_on_the_number_of_threads(path: str, count: int) -> None:
    weight, scales = random_matrix(1000, 256)
    x = random_rows(70, 256, torch.bfloat16)
    with threads(count):
        assert torch.equal(Int8Kernel(weight, scales)(x), product_in_int64(x, weight, scales))


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_overflowed_stays_visible_and_alone(path: str, bad: float, rows: int) -> None:
    weight, scales = random_matrix(40, 96)
    x = random_rows(rows, 96, torch.float32)
    x[1, 5] = bad
    found = Int8Kernel(weight, scales)(x)
    assert found[1].isnan().all()
    others = torch.arange(rows) != 1
    assert torch.equal(found[others], product_in_int64(x[others], weight, scales))


@pytest.mark.parametrize("rows", [1, 20])
def test_zeros_give_zeros(path: str, rows: int) -> None:
    weight, scales = random_matrix(40, 96)
    assert not Int8Kernel(weight, scales)(torch.zeros(rows, 96)).any()


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("shape", [(17, 65), (48, 100), (3, 7)])
def test_nothing_is_read_behind_the_matrix(path: str, shape: tuple[int, int], rows: int) -> None:
    """The weights end where the process may not read on, as they can at the end of a mapped file."""
    values, scales = random_matrix(*shape)
    page = mmap.PAGESIZE
    size = -(-values.numel() // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(start + size, page, 0) == 0
    weight = torch.frombuffer(memory, dtype=torch.int8, count=values.numel(), offset=size - values.numel())
    weight = weight.view(shape).copy_(values)
    x = random_rows(rows, shape[1], torch.bfloat16)
    assert torch.equal(Int8Kernel(weight, scales)(x), product_in_int64(x, values, scales))


def test_a_planted_fault_is_seen(path: str) -> None:
    weight, scales = random_matrix(32, 512)
    x = random_rows(6, 512, torch.float32)
    expected = product_in_int64(x, weight, scales)
    flipped = weight.clone()
    flipped[7, 300] ^= 64
    different = Int8Kernel(flipped, scales)(x) != expected
    assert different[:, 7].all()
    assert not different[:, torch.arange(32) != 7].any()
    swapped = scales.clone()
    swapped[[3, 4]] = scales[[4, 3]]
    different = Int8Kernel(weight, swapped)(x) != expected
    assert different[:, [3, 4]].all()
    assert different.sum() == 12


def test_plain_pytorch_gives_nearly_the_same(path: str) -> None:
    weight, scales = random_matrix(64, 256)
    x = random_rows(9, 256, torch.float32)
    torch.testing.assert_close(Int8Kernel(weight, scales)(x), Int8Linear(weight, scales)(x), rtol=1e-5, atol=1e-4)


def test_rows_that_could_overflow_the_sums_are_left_to_pytorch() -> None:
    assert not kernel_takes(torch.empty(1, KERNEL_MAX_IN + 1, dtype=torch.int8))
    weight = torch.full((16, KERNEL_MAX_IN), -128, dtype=torch.int8)
    scales = torch.ones(16)
    for name in KERNEL_PATHS:
        with on_path(name):
            for rows in (1, 4):  # the largest sums that there can be
                x = torch.ones(rows, KERNEL_MAX_IN)
                assert torch.equal(Int8Kernel(weight, scales)(x), product_in_int64(x, weight, scales))
