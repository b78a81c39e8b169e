"""E4M3 in the KV cache, as device functions. Two neighbouring values are one word of 16 bits, so that GPUs without FP8
units hold them too, and words go through the matrix units' 16-bit paths where bytes would have to be shuffled."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# Against an FP8 cache the queries are float16, which holds a 16th of any sound bfloat16.
QUERY_UNIT = tl.constexpr(16.0)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# Two words in, the first values of both and the second values of both out.
_BY_FP8_UNITS = tl.constexpr("""{
    .reg .b16 one, two;
    .reg .b32 first, second;
    mov.b32 {one, two}, $2;
    cvt.rn.f16x2.e4m3x2 first, one;
    cvt.rn.f16x2.e4m3x2 second, two;
    prmt.b32 $0, first, second, 0x5410;
    prmt.b32 $1, first, second, 0x7632;
}""")
_BY_BITS = tl.constexpr("""{
    .reg .b32 sign, size;
    shl.b32 sign, $2, 8;
    shl.b32 size, $2, 7;
    and.b32 size, size, 0x3f803f80;
    lop3.b32 $0, sign, 0x80008000, size, 0xea;
    shr.b32 size, $2, 1;
    and.b32 size, size, 0x3f803f80;
    lop3.b32 $1, $2, 0x80008000, size, 0xea;
}""")


@triton.jit
def product(a, b, total):
    """total + a b, in float32. The interpreter keeps bfloat16 as bits and would multiply those."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def from_e4m3(words, FP8_UNITS: tl.constexpr):
    """int16 -> float16, exact: the values of the low bytes, those of the high bytes. Without FP8 units the bits are
    moved: what they then say is 256 times too small, which spares a multiplication, and a NaN reads as 480."""
    if INTERPRETED:
        bits = words.to(tl.uint16, bitcast=True)
        low = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        high = ((bits & 0x8000) | ((bits & 0x7F00) >> 1)).to(tl.float16, bitcast=True)
        if FP8_UNITS:
            low = tl.where((bits & 0x7F) == 0x7F, float("nan"), low * 256.0).to(tl.float16)
            high = tl.where((bits & 0x7F00) == 0x7F00, float("nan"), high * 256.0).to(tl.float16)
    else:
        code: tl.constexpr = _BY_FP8_UNITS if FP8_UNITS else _BY_BITS
        low, high = tl.inline_asm_elementwise(
            code, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return low, high


@triton.jit
def to_e4m3(values, scale):
    """float32 -> int32 of 0 to 255: the bits of `mixtral_runtime.formats.fp8.to_e4m3`, on any GPU."""
    scaled = tl.math.div_rn(values, scale)
    sign = (scaled.to(tl.int32, bitcast=True) >> 24) & 0x80
    size = tl.minimum(tl.abs(scaled), 448.0)
    # Below 2**-6 E4M3 counts units of 2**-9: adding 2**14, whose last place that is, rounds to them.
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    bits = size.to(tl.int32, bitcast=True)
    large = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    code = tl.where(size < 0.015625, small, large)
    return tl.where(scaled == scaled, code, 0x7F) | sign


@triton.jit
def to_words(low, high, scale):
    """float32 -> int16, two values in units of `scale`."""
    return (to_e4m3(low, scale) | (to_e4m3(high, scale) << 8)).to(tl.int16)


@triton.jit
def as_operand(queries, FP8: tl.constexpr):
    """Queries in the dtype that the cache's tiles have when they are multiplied."""
    if FP8:
        queries = (queries.to(tl.float32) / QUERY_UNIT).to(tl.float16)
    return queries


@triton.jit
def units(scales, layer, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr, FP8_UNITS: tl.constexpr):
    """-> the layer's scale, and what the products with keys and with values count in, float32. Scores are scaled by
    1 / sqrt(HEAD_SIZE) and are exponents of 2."""
    score_unit = LOG2_E / tl.sqrt(HEAD_SIZE * 1.0)
    scale = 1.0
    value_unit = 1.0
    if FP8:
        scale = tl.load(scales + layer)
        value_unit = scale if FP8_UNITS else scale * 256.0
        score_unit *= value_unit * QUERY_UNIT
    return scale, score_unit, value_unit
