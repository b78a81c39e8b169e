"""The bytes of an FP8 KV cache as the GPU's attention kernels write and read them."""

import e4m3
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from mixtral_runtime.formats.fp8 import E4M3, to_e4m3
from mixtral_runtime.kernels.gpu.attention_fp8 import from_e4m3, to_words


@triton.jit  # type: ignore[untyped-decorator]
def pack(words, low, high, scale, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, COUNT)
    tl.store(words + i, to_words(tl.load(low + i), tl.load(high + i), tl.load(scale)))


@triton.jit  # type: ignore[untyped-decorator]
def unpack(low, high, words, COUNT: tl.constexpr, FP8_UNITS: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, COUNT)
    first, second = from_e4m3(tl.load(words + i), FP8_UNITS)
    tl.store(low + i, first)
    tl.store(high + i, second)


def packed(values: Tensor, scale: float) -> Tensor:
    """values: float32 [2 * n], n a power of two -> uint8 [2 * n]."""
    words = torch.zeros(len(values) // 2, dtype=torch.int16)
    low, high = values[::2].contiguous(), values[1::2].contiguous()
    pack[(1,)](words, low, high, torch.tensor([scale]), COUNT=len(words))
    return words.view(torch.uint8)


def test_ties_subnormals_and_saturation_are_those_of_the_format() -> None:
    """Every E4M3 value, what lies half-way to the next, a float32 beside that, and beyond the largest."""
    values = e4m3.VALUES.astype(np.float32)
    middles = (values[:-1] + values[1:]) / 2
    beside = [np.nextafter(middles, np.float32(x)) for x in (0, np.inf)]
    beyond = np.array([449.0, 464.0, 480.0, 1e30, np.inf, 1e-30, 2.0**-10], dtype=np.float32)
    positive = np.concatenate([values, middles, *beside, beyond])
    both = np.concatenate([positive, -positive])
    padded = np.zeros(1024, dtype=np.float32)
    padded[: len(both)] = both
    assert np.array_equal(packed(torch.from_numpy(padded), 1.0).numpy(), e4m3.codes_of(padded))


@pytest.mark.parametrize("scale", [1.0, 0.013, 3.7e-5, 211.0])
def test_values_are_divided_and_rounded_as_in_plain_pytorch(scale: float) -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * scale * 200
    values[7] = torch.nan
    assert torch.equal(packed(values, scale), to_e4m3(values, torch.tensor(scale)).view(torch.uint8))


@pytest.mark.parametrize("fp8_units", [True, False])
def test_every_byte_is_read_exactly(fp8_units: bool) -> None:
    """Without FP8 units in units of 256, and with a NaN that is a number."""
    codes = torch.arange(256, dtype=torch.uint8)
    low, high = torch.zeros(2, 128, dtype=torch.float16)
    unpack[(1,)](low, high, codes.view(torch.int16), COUNT=128, FP8_UNITS=fp8_units)
    found = torch.stack([low, high], 1).flatten()
    exact = codes.view(E4M3).half()
    if not fp8_units:
        exact[[0x7F, 0xFF]] = torch.tensor([480.0, -480.0]).half()
        found = found * 256
    assert torch.equal(found.nan_to_num(1e4), exact.nan_to_num(1e4))
