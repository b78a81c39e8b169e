"""4-bit weights against scalar implementations written from the text of TensorRT-LLM's formats: W4A16_AWQ, and
W4A16_GPTQ with zero points."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import FORMATS, Format, Linear, get_format
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.formats.gptq import Gptq
from mixtral_runtime.formats.int4 import VALUES_AT_ONCE, pack, quantize_groups, unpack

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FOUR_BIT = {"W4A16_AWQ": Awq(), "W4A16_GPTQ": Gptq()}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


def scale_for(in_features: int, dtype: torch.dtype) -> Tensor:
    return (random(in_features, seed=5).exp() * 3).to(dtype)


def linear_of(weight_format: Format, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
    return weight_format.linear({name.removeprefix("a."): tensor for name, tensor in tensors.items()}, dtype)


def scalar_awq(weight: Tensor, prequant: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """Values and scales, one element at a time, in double precision where float32 would be exact anyway."""
    dtype, values, scales = weight.dtype, [], []
    for row in weight.tolist():
        divided = [
            torch.tensor(w, dtype=torch.float32) / torch.tensor(p) for w, p in zip(row, prequant.tolist(), strict=True)
        ]
        scaled = [float(w) for w in divided]
        value_row: list[int] = []
        scale_row: list[float] = []
        for start in range(0, len(scaled), 128):
            group = scaled[start : start + 128]
            amax = torch.tensor(max(map(abs, group)), dtype=torch.float32)
            scale = float((amax / 7).to(dtype))
            scale_row.append(scale)
            for w in group:
                ratio = float(torch.tensor(w) / torch.tensor(scale)) if scale else 0.0
                value_row.append(max(-8, min(7, round(ratio))))  # Python rounds half to even
        values.append(value_row)
        scales.append(scale_row)
    return values, scales


@given(st.binary(min_size=4, max_size=96).filter(lambda data: len(data) % 4 == 0))
def test_packing_is_a_bijection(data: bytes) -> None:
    packed = torch.frombuffer(bytearray(data), dtype=torch.int8).view(-1, 4)
    values = unpack(packed)
    assert values.shape == (2 * packed.shape[0], 4)
    assert values.min() >= -8
    assert values.max() <= 7
    assert torch.equal(pack(values), packed)


def test_the_low_nibble_is_the_even_row() -> None:
    values = torch.tensor([[1, -8], [-2, 7]], dtype=torch.int8)
    assert pack(values).view(torch.uint8).tolist() == [[0xE1, 0x78]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_awq_values_and_scales_equal_the_scalar_rule(dtype: torch.dtype, scaled: bool) -> None:
    weight = random(6, 256, dtype=dtype)
    prequant = scale_for(256, dtype) if scaled else torch.ones(256, dtype=dtype)
    values, scales = quantize_groups(weight, prequant if scaled else None)
    expected_values, expected_scales = scalar_awq(weight, prequant)
    assert values.tolist() == expected_values
    assert scales.dtype == dtype
    assert scales.tolist() == expected_scales


def test_a_group_of_zeros_gives_zeros() -> None:
    values, scales = quantize_groups(torch.zeros(2, 256, dtype=torch.bfloat16))
    assert not values.any()
    assert not scales.any()


def test_more_rows_than_are_done_at_once_give_the_same_as_one_by_one() -> None:
    weight = random(VALUES_AT_ONCE // 1024 + 3, 1024)
    values, scales = quantize_groups(weight)
    rows = [quantize_groups(row[None]) for row in weight]
    assert torch.equal(values, torch.cat([v for v, _ in rows]))
    assert torch.equal(scales, torch.cat([s for _, s in rows]))


@pytest.mark.parametrize("weight_format", FOUR_BIT.values(), ids=FOUR_BIT)
@pytest.mark.parametrize("experts", [(), (3,)])
def test_tensors_have_the_shapes_and_dtypes_that_are_announced(weight_format: Format, experts: tuple[int, ...]) -> None:
    weight = random(*experts, 8, 256, dtype=torch.bfloat16)
    specs = weight_format.specs("a.weight", tuple(weight.shape), torch.bfloat16)
    tensors = weight_format.quantize("a.weight", weight)
    found = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    assert found == [(spec.name, spec.shape, spec.dtype) for spec in specs]
    assert (specs[0].shape, specs[0].dtype) == ((*experts, 4, 256), torch.int8)
    assert specs[1].shape == (*experts, 8, 2)
    third = {"W4A16_AWQ": ("prequant_scaling_factor", (256,)), "W4A16_GPTQ": ("zero", (8, 2))}
    name, shape = third[weight_format.quantization["quant_algo"]]
    assert (specs[2].name, specs[2].shape) == (f"a.{name}", (*experts, *shape))


def test_experts_are_quantised_one_by_one_with_one_prequant_scale() -> None:
    weight = random(3, 8, 128, dtype=torch.bfloat16)
    scale = scale_for(128, torch.bfloat16)
    awq = Awq({"a.weight": scale})
    whole = awq.quantize("a.weight", weight)
    for expert in range(3):
        one = awq.quantize("a.weight", weight[expert : expert + 1])
        assert all(torch.equal(one[name][0], whole[name][expert]) for name in whole)
        assert torch.equal(whole["a.prequant_scaling_factor"][expert], scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantised_awq_weights_equal_the_scalar_rule(dtype: torch.dtype) -> None:
    weight, prequant = random(6, 256, dtype=dtype), scale_for(256, dtype)
    awq = Awq({"a.weight": prequant})
    found = linear_of(awq, awq.quantize("a.weight", weight), dtype).dequantize(torch.float64)
    values, scales = scalar_awq(weight, prequant)
    factors = prequant.double()
    for row in range(6):
        for column in range(256):
            expected = values[row][column] * scales[row][column // 128] * factors[column].item()
            assert found[row, column].item() == pytest.approx(expected, rel=3e-7)


def test_awq_weights_are_within_half_a_step() -> None:
    weight = random(16, 256)
    found = linear_of(Awq(), Awq().quantize("a.weight", weight), torch.float32).dequantize(torch.float32)
    scales = quantize_groups(weight)[1].repeat_interleave(128, dim=1)
    assert ((found - weight).abs() <= scales / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_points_are_honoured_exactly(dtype: torch.dtype) -> None:
    """(value - zero) * scale, whatever the rounding of the stored product of zero and scale."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 16, (64, 256), dtype=torch.int8, generator=generator)
    zeros = torch.randint(0, 16, (64, 2), dtype=torch.int8, generator=generator)
    scales = torch.rand(64, 2, generator=generator).mul_(0.01).to(dtype)
    scales[0] = 0
    tensors = Gptq().tensors("a.weight", values, zeros, scales)
    expected = (values.double() - zeros.repeat_interleave(128, dim=1)) * scales.double().repeat_interleave(128, dim=1)
    found = linear_of(Gptq(), tensors, dtype).dequantize(torch.float32)
    assert torch.equal(found, expected.float())
    # TensorRT-LLM's reading of the same tensors, in which the stored zero is added after the multiplication.
    stored = tensors["a.zero"].double().repeat_interleave(128, dim=1)
    theirs = (values.double() - 8) * scales.double().repeat_interleave(128, dim=1) + stored
    assert ((theirs - expected).abs() <= stored.abs() * torch.finfo(dtype).eps).all()


def test_rounding_with_zero_points_stays_within_a_step() -> None:
    weight = random(16, 256) + 0.05
    tensors = Gptq().quantize("a.weight", weight)
    found = linear_of(Gptq(), tensors, torch.float32).dequantize(torch.float32)
    steps = tensors["a.weights_scaling_factor"].repeat_interleave(128, dim=1)
    assert ((found - weight).abs() <= steps * (1 + 1e-5)).all()


@pytest.mark.parametrize("weight_format", FOUR_BIT.values(), ids=FOUR_BIT)
def test_sizes_without_whole_groups_or_bytes_are_refused(weight_format: Format) -> None:
    with pytest.raises(InvalidArgument, match=r"b\.weight has 96 input features, 4-bit weights need a multiple of 128"):
        weight_format.specs("b.weight", (4, 96), torch.float16)
    with pytest.raises(InvalidArgument, match=r"b\.weight has 3 output features"):
        weight_format.specs("b.weight", (2, 3, 128), torch.float16)


def test_the_formats_are_found_by_their_names() -> None:
    assert get_format("awq") is FORMATS["awq"]
    assert get_format("W4A16_AWQ") is FORMATS["awq"]
    assert isinstance(get_format("W4A16_GPTQ"), Gptq)
