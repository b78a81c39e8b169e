"""Int8 quantisation bit for bit as TensorRT-LLM's C++ does it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import FORMATS, get_format
from mixtral_runtime.formats.int8 import VALUES_AT_ONCE, _quantize_in_pytorch, quantize_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def c_round(value: np.float32) -> int:
    """C's `round` by its definition: to the nearest integer, halves away from zero. Exact, in Python's integers."""
    numerator, denominator = abs(float(value)).as_integer_ratio()
    whole = (2 * numerator + denominator) // (2 * denominator)
    return int(np.sign(value)) * whole


def scalar_quantize(column: list[float]) -> tuple[list[int], np.float32]:
    """One output channel, element by element in float32, as the C++ loop reads; the scale still unrounded."""
    w = [np.float32(x) for x in column]
    scale = np.float32(max(abs(x) for x in w)) * np.float32(1 / 128)
    if scale == 0:
        return [0] * len(w), scale
    return [max(-128, min(127, c_round(x / scale))) for x in w], scale


def assert_matches_the_scalar_rule(weight: Tensor) -> None:
    values, scales = quantize_rows(weight)
    for channel in range(weight.shape[0]):
        expected, scale = scalar_quantize(weight[channel].float().tolist())
        assert values[channel].tolist() == expected
        assert scales[channel] == torch.tensor(scale).to(weight.dtype)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1), st.integers(-20, 10))
def test_random_channels_match_a_scalar_implementation(dtype: torch.dtype, seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(4, 48, generator=generator) * 2.0**exponent).to(dtype)
    assert_matches_the_scalar_rule(weight)


def test_halves_are_rounded_away_from_zero_and_their_neighbours_are_not() -> None:
    """amax 128 makes the scale one, so the weights are the quotients themselves."""
    halves = torch.arange(-127.5, 127.5, 1.0)
    below = torch.nextafter(halves, torch.zeros(()))  # towards zero
    above = torch.nextafter(halves, halves.sign() * 1000)
    weight = torch.cat([halves, below, above, torch.tensor([128.0, 0.0, -0.0])])[None]
    assert_matches_the_scalar_rule(weight)
    values = quantize_rows(weight)[0][0]
    assert values[: len(halves)].tolist() == [int(h + np.sign(h) * 0.5) if h < 127 else 127 for h in halves.tolist()]
    assert values[len(halves) : 2 * len(halves)].tolist() == [int(h) for h in below.tolist()]


@pytest.mark.parametrize("amax", [41.0, 61.0, 115.0])
def test_halves_are_hit_exactly_because_the_division_is_a_true_one(amax: float) -> None:
    """Multiplying by the reciprocal of the scale would miss some of them by the last bit and round the other way."""
    weight = torch.cat([torch.arange(-127.5, 127.5, 1.0), torch.tensor([128.0])])[None] * (amax / 128)
    assert_matches_the_scalar_rule(weight)


def test_the_largest_positive_value_saturates_and_the_largest_negative_one_does_not() -> None:
    values, scales = quantize_rows(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert values.tolist() == [[127, 0], [-128, 0]]
    assert scales.tolist() == [1 / 128, 1 / 128]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channel_of_zeros_gives_zeros(dtype: torch.dtype) -> None:
    values, scales = quantize_rows(torch.zeros(2, 8, dtype=dtype))
    assert not values.any()
    assert not scales.any()


def test_the_quotient_uses_the_scale_before_it_is_rounded_to_the_stored_dtype() -> None:
    """In float16 a scale this small is rounded by 30 %, which would move every value if it were the divisor."""
    weight = torch.tensor([[2.0**-18 * 1.25, 2.0**-18, 2.0**-19]], dtype=torch.float16)
    assert_matches_the_scalar_rule(weight)
    values, scales = quantize_rows(weight)
    assert scales[0].float() != weight[0, 0].float() / 128
    assert values[0, 1] == 102  # 128 / 1.25 = 102.4


def test_more_channels_than_are_done_at_once_give_the_same_as_one_by_one() -> None:
    weight = torch.randn(VALUES_AT_ONCE // 4096 + 3, 4096, generator=torch.Generator().manual_seed(0))
    values, scales = quantize_rows(weight)
    rows = [quantize_rows(row[None]) for row in weight]
    assert torch.equal(values, torch.cat([v for v, _ in rows]))
    assert torch.equal(scales, torch.cat([s for _, s in rows]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_features", [1, 31, 64, 1000])
def test_the_kernel_and_plain_pytorch_give_the_same_bits_for_every_value(dtype: torch.dtype, in_features: int) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    mixed = finite[torch.randperm(len(finite), generator=torch.Generator().manual_seed(in_features))]
    weight = mixed[: len(mixed) // in_features * in_features].view(-1, in_features)
    values, scales = quantize_rows(weight)
    expected = torch.empty_like(values), torch.empty_like(scales)
    _quantize_in_pytorch(weight, *expected)
    assert torch.equal(values, expected[0])
    assert torch.equal(scales, expected[1])


def test_experts_are_quantised_one_by_one() -> None:
    weight = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = get_format("int8").quantize("a.weight", weight)
    for expert in range(3):
        one = get_format("int8").quantize("a.weight", weight[expert : expert + 1])
        assert all(torch.equal(one[name][0], whole[name][expert]) for name in whole)


def test_dequantised_weights_are_within_half_a_step() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    values, scales = quantize_rows(weight)
    linear = get_format("int8").linear({"weight": values, "per_channel_scale": scales}, torch.float32)
    error = (linear.dequantize(torch.float32) - weight).abs()
    saturated = values == 127  # the largest positive value of a channel, off by up to a whole step
    assert (error <= scales[:, None] * torch.where(saturated, 1.0, 0.5) * (1 + 1e-5)).all()


def test_formats_are_found_by_precision_and_by_quant_algo() -> None:
    assert get_format("W8A16") is FORMATS["int8"]
    assert get_format(None) is FORMATS["16bit"]
    assert get_format("W8A16", "sm80").layout == "sm80"


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match="int3 is not known, there are 16bit, int8"):
        get_format("int3")


def test_a_layout_is_refused_where_there_is_none() -> None:
    with pytest.raises(InvalidArgument, match="layout is sm80, precision 16bit has none"):
        get_format("16bit", "sm80")
