"""The random numbers of a request: a function of its seed and of how many tokens it has, so that no batch changes them.

Element `step` of the SplitMix64 stream of the hashed seed: Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators". Counter-based: no state to keep, and the same on every device. The seed is hashed so that
neighbouring seeds do not share a shifted stream.
"""

import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hashed_seeds(seeds: list[int]) -> Tensor:
    """seeds: from 0 to 2**64 - 1 -> [rows] int64, what `uniforms` takes."""
    return _mix(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64))


def uniforms(hashed: Tensor, steps: Tensor) -> Tensor:
    """hashed: of `hashed_seeds`, steps: [rows] int64 -> [rows] float64 in [0, 1)."""
    return _shift_right(_mix(hashed + (steps + 1) * _signed(GOLDEN_GAMMA)), 11).double() / 2**53


def _mix(z: Tensor) -> Tensor:
    """In int64, whose products and sums wrap like those of unsigned numbers."""
    z = (z ^ _shift_right(z, 30)) * _signed(FACTORS[0])
    z = (z ^ _shift_right(z, 27)) * _signed(FACTORS[1])
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Zeros come in from the left, where PyTorch's own shift repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value
