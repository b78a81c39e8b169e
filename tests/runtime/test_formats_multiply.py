"""What a format's Linear promises: a row's result depends on that row alone, and it is close to the exact product.

FP8, which rounds activations too, has tests of its own."""

import pytest
import torch
from torch import Tensor

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import Format, Linear, get_format
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.formats.dense import Dense
from mixtral_runtime.formats.gptq import Gptq
from mixtral_runtime.formats.int8 import Int8

TOKENS = 37
PREQUANT_SCALE = torch.linspace(0.3, 3, 256)
FORMATS: dict[str, Format] = {
    "16bit": Dense(),
    "int8": Int8(),
    "awq": Awq(),
    "awq, scaled": Awq({"a.weight": PREQUANT_SCALE}),
    "gptq": Gptq(),
}
SHAPES = [(64, 128), (48, 40), (33, 96)]  # [out, in]; 40 is a size that torch's int8 kernel cannot take
GROUPED_SHAPES = [(64, 256), (34, 256)]  # what formats with groups of 128 can take
CASES = [
    pytest.param(name, shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name in FORMATS
    for shape in (SHAPES if name in ("16bit", "int8") else GROUPED_SHAPES)
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative error of the dtype's products: unit roundoff, and for the 16-bit ones accumulation in float32.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def make_linear(name: str, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) * 0.1
    tensors = FORMATS[name].quantize("a.weight", weight)
    return FORMATS[name].linear({key.removeprefix("a."): value for key, value in tensors.items()}, dtype)


def activations(in_features: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(TOKENS, in_features, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_row_is_the_same_bit_for_bit_in_every_batch(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear, x = make_linear(name, shape, dtype), activations(shape[1], dtype)
    together = linear(x)
    assert together.shape == (TOKENS, shape[0])
    assert together.dtype == dtype
    shuffled = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    assert torch.equal(linear(x[shuffled]), together[shuffled])
    for size in (1, 2, 5, 16, 17):
        parts = torch.cat([linear(x[start : start + size]) for start in range(0, TOKENS, size)])
        assert torch.equal(parts, together), size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_product_is_close_to_the_exact_one(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear, x = make_linear(name, shape, dtype), activations(shape[1], dtype)
    exact = x.double() @ linear.dequantize(torch.float64).T
    bound = x.double().abs() @ linear.dequantize(torch.float64).abs().T * TOLERANCE[dtype]
    assert ((linear(x).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("name", FORMATS)
def test_no_rows_give_no_rows(name: str) -> None:
    linear = make_linear(name, (64, 256), torch.float32)
    assert linear(torch.empty(0, 256)).shape == (0, 64)


def test_rows_need_not_be_contiguous() -> None:
    linear = make_linear("int8", (64, 128), torch.float32)
    x = activations(128, torch.float32)
    strided = x.T.contiguous().T
    assert torch.equal(linear(strided), linear(x))


def test_kernel_layouts_are_refused_with_the_command_that_converts_them() -> None:
    tensors = {"weight": torch.zeros(64, 64, dtype=torch.int8), "per_channel_scale": torch.ones(64)}
    with pytest.raises(CheckpointError, match=r"sm80 layout.*mixtral-build engine"):
        get_format("int8", "sm80").linear(tensors, torch.float32)
