"""CPU kernels of FP8 and 4-bit weights, one matrix at a time: near the exact product, and each row by itself."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import KERNEL_PATHS, on_path, threads
from low_bit_weights import ACTIVATION_SCALE, FORMATS, Stack, make_stack, random_stack
from torch import Tensor

from mixtral_runtime.formats import Linear
from mixtral_runtime.formats.fp8 import to_e4m3

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Of the sum of absolute products: two roundings to the dtype (AWQ's factors, the result), and float32 sums.
TOLERANCE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 5e-7}
# Mixtral 8x7B: gate and up projection, down projection.
REAL_SHAPES = [(28672, 4096), (4096, 14336)]
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


def activations(tokens: int, in_features: int, dtype: torch.dtype, seed: int = 2) -> Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded(stack: Stack, x: Tensor) -> Tensor:
    """What the format makes of activations before they are multiplied, float64."""
    if stack.name != "fp8":
        return x.double()
    scale = torch.tensor(ACTIVATION_SCALE)
    return to_e4m3(x, scale).double() * scale.double()


def assert_product(stack: Stack, linear: Linear, x: Tensor, rows: slice = slice(None)) -> None:
    """`linear` multiplies as the weights of `stack` should; rows: of the result, those that are compared."""
    weight, exact_x = stack.linear(x.dtype).dequantize(torch.float64)[rows], rounded(stack, x)
    smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps  # of the dtype's numbers but zero
    bound = exact_x.abs() @ weight.abs().T * TOLERANCE[x.dtype] + smallest
    found = linear(x)
    assert found.dtype == x.dtype
    assert ((found[:, rows].double() - exact_x @ weight.T).abs() <= bound).all()


def shapes(name: str) -> st.SearchStrategy[tuple[int, int]]:
    """[out, in] with every kind of remainder that the format allows."""
    if name == "fp8":
        return st.tuples(st.integers(1, 70), st.integers(1, 330))
    return st.tuples(st.integers(1, 35).map(lambda n: 2 * n), st.integers(1, 19).map(lambda n: 128 * n))


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(data=st.data())
def test_the_product_is_close_to_the_exact_one(path: str, name: str, data: st.DataObject) -> None:
    stack = make_stack(name, 1, *data.draw(shapes(name)))
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 40))
    linear = stack.linear(dtype)
    assert_product(stack, linear, activations(tokens, linear.in_features, dtype))


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(data=st.data())
def test_a_row_is_the_same_bit_for_bit_in_every_batch(path: str, name: str, data: st.DataObject) -> None:
    stack = make_stack(name, 1, *data.draw(shapes(name)))
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 150))
    linear = stack.linear(dtype)
    x = activations(tokens, linear.in_features, dtype)
    together = linear(x)
    for size in data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)):
        parts = [linear(part) for part in torch.split(x, size)]
        assert torch.equal(torch.cat(parts), together)
    with threads(data.draw(st.integers(2, 4))):
        assert torch.equal(linear(x), together)


@pytest.mark.parametrize("name", ["awq", "gptq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_integers_have_the_same_bits_on_every_path(name: str, dtype: torch.dtype) -> None:
    stack = make_stack(name, 1, 70, 2304)
    linear, x = stack.linear(dtype), activations(21, 2304, dtype)
    results = []
    for path in KERNEL_PATHS:
        with on_path(path):
            results.append(linear(x))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("tokens", [1, 20])
def test_every_e4m3_value_is_read_as_defined(path: str, tokens: int) -> None:
    """Subnormals too. One activation of 1 in each row picks one weight."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()].expand(3, -1).contiguous()  # [out, 254]
    tensors = {"weight": codes, "weights_scaling_factor": torch.ones(1), "activation_scaling_factor": torch.ones(1)}
    linear = Stack("fp8", {}, 1).format.linear(tensors, torch.float32)
    picks = torch.eye(codes.shape[1])
    found = torch.cat([linear(rows) for rows in torch.split(picks, tokens)])
    assert torch.equal(found, codes.float().T)


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_every_nibble_is_read_from_its_place(path: str, name: str, tokens: int) -> None:
    stack = make_stack(name, 1, 34, 384)
    linear = stack.linear(torch.float32)
    found = torch.cat([linear(rows) for rows in torch.split(torch.eye(384), tokens)])
    torch.testing.assert_close(found, linear.dequantize(torch.float32).T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(path: str, name: str, bad: float) -> None:
    linear, x = make_stack(name, 1, 34, 256).linear(torch.bfloat16), activations(20, 256, torch.bfloat16)
    x[4], x[5], x[6] = 0, 1e-38, -1e-38
    clean = linear(x)
    assert clean[4:7].eq(0).all()
    x[3, 130] = bad
    spoilt = linear(x)
    assert torch.equal(spoilt[:3], clean[:3])
    assert torch.equal(spoilt[4:], clean[4:])
    if name == "fp8" and bad == float("inf"):
        assert spoilt[3].isfinite().all()  # it saturates, as in PyTorch
    else:
        assert not spoilt[3].isfinite().any()


@pytest.mark.parametrize("shape", REAL_SHAPES, ids=["fc", "proj"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_of_mixtral_8x7b(path: str, name: str, shape: tuple[int, int]) -> None:
    """Every 211th row of the weight is compared with the exact product."""
    stack = random_stack(name, *shape)
    linear, x = stack.linear(torch.bfloat16), activations(5, shape[1], torch.bfloat16)
    found = linear(x)
    assert torch.equal(linear(x[:1]), found[:1])
    rows = slice(2, None, 211)
    exact_x, weight = rounded(stack, x), linear_rows(stack, rows)
    bound = exact_x.abs() @ weight.abs().T * TOLERANCE[torch.bfloat16]
    assert ((found[:, rows].double() - exact_x @ weight.T).abs() <= bound).all()


def linear_rows(stack: Stack, rows: slice) -> Tensor:
    """Some rows of the weight, float64; of a pair of rows that share bytes both are cut out first."""
    count = stack.linear(torch.float32).out_features
    indices = torch.arange(count)[rows]
    pairs = torch.stack([indices & ~1, indices | 1], dim=1).flatten()
    stored = {"weight": indices if stack.name == "fp8" else indices // 2}
    cut = {
        suffix: tensor[0][stored.get(suffix, indices if stack.name == "fp8" else pairs)]
        if suffix in ("weight", "zero") or (suffix == "weights_scaling_factor" and stack.name != "fp8")
        else (tensor if suffix == "activation_scaling_factor" else tensor[0])
        for suffix, tensor in stack.tensors.items()
    }
    weight = stack.format.linear(cut, torch.float32).dequantize(torch.float64)
    return weight if stack.name == "fp8" else weight.view(len(indices), 2, -1)[torch.arange(len(indices)), indices % 2]
