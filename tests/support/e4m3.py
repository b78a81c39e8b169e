"""FP8 E4M3 from its definition: a table of all values and a search for the nearest. The oracle for quantisation."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def _table() -> NDArray[np.float64]:
    """The values of codes 0 to 126: four bits of exponent with bias 7, three of mantissa; 127 is not a number."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, (codes & 7) / 8
    return np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))


VALUES = _table()


def codes_of(values: Float32) -> NDArray[np.uint8]:
    """The nearest E4M3 value of each, ties to the even code, 448 at most, as bytes with the sign on top."""
    magnitude = np.minimum(np.abs(values.astype(np.float64)), VALUES[-1])
    above = np.searchsorted(VALUES, magnitude)
    below = np.maximum(above - 1, 0)
    gap_above, gap_below = VALUES[above] - magnitude, magnitude - VALUES[below]
    nearest = np.where(gap_above == gap_below, np.where(above % 2 == 0, above, below), above)
    nearest = np.where(gap_below < gap_above, below, nearest)
    codes: NDArray[np.uint8] = (nearest + 128 * np.signbit(values)).astype(np.uint8)
    return codes


def decode(codes: NDArray[np.uint8]) -> Float32:
    values: Float32 = (VALUES[codes & 127] * np.where(codes >= 128, -1, 1)).astype(np.float32)
    return values


def round_trip(values: Float32, scale: float) -> Float32:
    """What is left of values that were stored in units of `scale` (float32)."""
    unit = np.float32(scale)
    return decode(codes_of(values / unit)) * unit
