"""FP8: the stored bytes and scales against the definition of E4M3, and the product with rounded activations."""

import e4m3
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mixtral_runtime.formats import Linear, TensorSpec, get_format
from mixtral_runtime.formats.fp8 import Fp8, quantize_matrices, scale_of, to_e4m3

NAME = "transformer.layers.0.mlp.fc.weight"
STEM = NAME.removesuffix("weight")


def as_bytes(values: Tensor) -> NDArray[np.uint8]:
    stored: NDArray[np.uint8] = values.view(torch.uint8).numpy()
    return stored


def make_linear(
    out_features: int, in_features: int, activation_scale: float = 0.01, seed: int = 0
) -> tuple[Linear, dict[str, Tensor]]:
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)) * 0.1
    fp8 = Fp8({"a.weight": torch.tensor([activation_scale])})
    tensors = fp8.quantize("a.weight", weight) | fp8.constants("a.weight")
    tensors = {name.removeprefix("a."): tensor for name, tensor in tensors.items()}
    return fp8.linear(tensors, torch.float32), tensors


def test_every_e4m3_value_and_every_midpoint_is_rounded_as_defined() -> None:
    middles = (e4m3.VALUES[1:] + e4m3.VALUES[:-1]) / 2
    near = np.concatenate([e4m3.VALUES, middles, np.nextafter(middles, 0), np.nextafter(middles, 500)])
    values = np.concatenate([near, -near, [449, -1e30, np.inf, 464, 465]]).astype(np.float32)
    found = to_e4m3(torch.from_numpy(values), torch.tensor(1.0))
    assert np.array_equal(as_bytes(found), e4m3.codes_of(values))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.floats(2.0**-60, 2.0**60, width=32))
def test_quantised_values_are_those_of_the_definition(values: list[float], scale: float) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = e4m3.codes_of(array / np.float32(scale))
    assert np.array_equal(as_bytes(to_e4m3(torch.from_numpy(array), torch.tensor(scale))), expected)


def test_nan_stays_nan() -> None:
    assert to_e4m3(torch.tensor([float("nan")]), torch.tensor(1.0)).float().isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(48, 96), (3, 48, 96)])
def test_each_matrix_has_the_scale_of_its_largest_value(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, scales = quantize_matrices(weight)
    assert scales.dtype == torch.float32
    assert scales.shape == shape[:-2]
    for matrix, scale, stored in zip(
        weight.view(-1, 48, 96), scales.view(-1), values.view(torch.uint8).view(-1, 48, 96), strict=True
    ):
        exact = matrix.float().numpy()
        assert scale.item() == np.float32(np.abs(exact).max()) / np.float32(448)
        assert np.array_equal(stored.numpy(), e4m3.codes_of(exact / np.float32(scale.item())))


def test_the_result_does_not_depend_on_how_many_values_are_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(2, 33, 64)
    whole = quantize_matrices(weight)[0].view(torch.uint8)
    monkeypatch.setattr("mixtral_runtime.formats.fp8.VALUES_AT_ONCE", 128)
    assert torch.equal(quantize_matrices(weight)[0].view(torch.uint8), whole)


def test_nothing_but_zeros_has_a_scale_that_can_be_divided_by() -> None:
    values, scale = quantize_matrices(torch.zeros(4, 8))
    assert scale == 1
    assert values.float().eq(0).all()
    assert scale_of(torch.zeros(1)).tolist() == [1.0]


def test_names_shapes_and_dtypes_are_tensorrt_llms() -> None:
    assert Fp8().specs(NAME, (8, 96, 64), torch.bfloat16) == [
        TensorSpec(NAME, (8, 96, 64), torch.float8_e4m3fn),
        TensorSpec(f"{STEM}weights_scaling_factor", (8, 1), torch.float32),
        TensorSpec(f"{STEM}activation_scaling_factor", (1,), torch.float32),
    ]
    assert [spec.shape for spec in Fp8().specs("a.weight", (96, 64), torch.float16)] == [(96, 64), (1,), (1,)]


def test_quantised_tensors_are_those_of_the_specs() -> None:
    fp8 = Fp8({NAME: torch.tensor([0.5])})
    made = fp8.quantize(NAME, torch.randn(8, 96, 64)) | fp8.constants(NAME)
    found = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()]
    assert found == fp8.specs(NAME, (8, 96, 64), torch.bfloat16)


def test_the_format_is_found_by_name_and_by_algorithm() -> None:
    assert get_format("fp8") is get_format("FP8")
    assert get_format("fp8").quantization["quant_algo"] == "FP8"


@pytest.mark.parametrize("scale", [0.001, 0.01, 3.0])
def test_the_product_is_that_of_rounded_weights_and_rounded_activations(scale: float) -> None:
    """A scale of 0.001 saturates activations at 0.448, one of 3 rounds most of them to few values."""
    linear, tensors = make_linear(33, 96, scale)
    x = torch.randn(21, 96, generator=torch.Generator().manual_seed(2))
    rounded = e4m3.round_trip(x.numpy(), scale).astype(np.float64)
    weight = e4m3.decode(as_bytes(tensors["weight"])).astype(np.float64) * tensors["weights_scaling_factor"].item()
    bound = np.abs(rounded) @ np.abs(weight).T * 2e-6
    assert (np.abs(linear(x).double().numpy() - rounded @ weight.T) <= bound).all()
    assert np.array_equal(linear.dequantize(torch.float64).numpy(), weight.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 128), (33, 40)])
def test_a_row_is_the_same_bit_for_bit_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear, _ = make_linear(*shape)
    x = torch.randn(37, shape[1], generator=torch.Generator().manual_seed(3)).to(dtype)
    together = linear(x)
    assert together.dtype == dtype
    for size in (1, 2, 5, 16, 17):
        parts = torch.cat([linear(x[start : start + size]) for start in range(0, 37, size)])
        assert torch.equal(parts, together), size
