"""How the kernels of matrix products read stored weights and round activations: functions of the device.

Encodings are constants of the compiler: `dense` (16 bits), `int8` (a scale per row), `fp8` (E4M3, a scale per matrix)
and `int4` (two rows to a byte, a scale per 128 of `in`). `tl.bfloat16` in the interpreter is kept as its bits, which
a product would multiply: there, operands become float32, in which products of 16-bit values are as exact as in the
matrix units.
"""

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)
HALF_OF_E4M3 = tl.constexpr(256.0)  # E4M3's bits, read as float16, are this many times too small
GROUP = tl.constexpr(128)  # values of a row that share a scale in 4 bits


@triton.jit
def memory_column(k):
    """Where activation k is kept when its order is the matrix units' (`permuted`).

    A thread of Hopper's matrix units holds columns 2t, 2t+1, 2t+8 and 2t+9 of every 16 of the weight. Reading bytes in
    that order would take 2 at a time from shared memory. In the order in which four such steps are a thread's 16
    consecutive bytes it takes one read of 16; a sum over columns does not mind, if the activations are in it too.
    """
    return (k & ~63) + 16 * ((k >> 2) & 3) + 8 * ((k >> 1) & 1) + 2 * ((k >> 4) & 3) + (k & 1)


@triton.jit
def true_column(p):
    """The activation at place p: the inverse of `memory_column`."""
    return (p & ~63) + 16 * ((p >> 1) & 3) + 4 * ((p >> 4) & 3) + 2 * ((p >> 3) & 1) + (p & 1)


@triton.jit
def round_to_e4m3(value):
    """float32 -> the nearest E4M3 value, ties to even, saturating; still float32. By adding and taking away a number
    whose last bit is E4M3's: so the numbers are the same on every GPU."""
    value = tl.clamp(value, -E4M3_MAX, E4M3_MAX, propagate_nan=tl.PropagateNan.ALL)
    exponent = value.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.maximum(exponent, (127 - 6) << 23)  # below 2^-6 E4M3 is subnormal: its steps stay 2^-9
    magic = (exponent + (20 << 23) + (1 << 22)).to(tl.float32, bitcast=True)  # 1.5 * 2^(e + 20)
    return (value + magic) - magic


@triton.jit
def _e4m3_as_half(codes, INTERPRETED: tl.constexpr):
    """uint8 codes -> float16, each a 256th of its value: exact, subnormals included."""
    if INTERPRETED:
        wide = codes.to(tl.uint16)
        return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 low, high, a, b;
        prmt.b32 low, $2, 0, 0x1404;
        prmt.b32 high, $2, 0, 0x3424;
        and.b32 a, low, 0x7f007f00;
        and.b32 b, high, 0x7f007f00;
        shr.u32 a, a, 1;
        shr.u32 b, b, 1;
        lop3.b32 $0, low, 0x80008000, a, 0xea;
        lop3.b32 $1, high, 0x80008000, b, 0xea;
        }""",
        "=r,=r,r",
        [codes],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _int8_as_16_bits(stored, DTYPE: tl.constexpr):
    """Without the conversion unit, which is four times slower than these: bfloat16 128 + (the low 7 bits), less 128 or,
    for a negative number, 256; float16 1024 + (the value + 128), less 1152."""
    if tl.bfloat16 == DTYPE:
        value = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d, one;
            mov.b32 one, 0x3f803f80;
            prmt.b32 a, $2, 0, 0x4140;
            prmt.b32 b, $2, 0, 0x4342;
            lop3.b32 c, a, 0x00800080, 0xc300c300, 0xea;
            lop3.b32 d, b, 0x00800080, 0xc300c300, 0xea;
            lop3.b32 a, a, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 b, b, 0x007f007f, 0x43004300, 0xea;
            fma.rn.bf16x2 $0, a, one, c;
            fma.rn.bf16x2 $1, b, one, d;
            }""",
            "=r,=r,r",
            [stored],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        value = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, base, less;
            mov.b32 base, 0x64646464;
            mov.b32 less, 0x64806480;
            xor.b32 c, $2, 0x80808080;
            prmt.b32 a, c, base, 0x4140;
            prmt.b32 b, c, base, 0x4342;
            sub.rn.f16x2 $0, a, less;
            sub.rn.f16x2 $1, b, less;
            }""",
            "=r,=r,r",
            [stored],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    return value


@triton.jit
def nibbles(packed, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """int8 bytes -> the even rows' and the odd rows' values, from -8 to 7, each of the bytes' shape.

    A nibble becomes the last bits of a float whose steps there are 1 (128 and 1024), from which 8 more than that float
    is taken away: no conversion unit is needed.
    """
    if INTERPRETED:
        even, odd = ((packed << 4) >> 4).to(tl.float32), (packed >> 4).to(tl.float32)
    elif tl.bfloat16 == DTYPE:
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, one, less;
            mov.b32 one, 0x3f803f80;
            mov.b32 less, 0xc308c308;
            prmt.b32 low, $4, 0, 0x4140;
            prmt.b32 high, $4, 0, 0x4342;
            lop3.b32 $0, low, 0x000f000f, 0x43084308, 0x6a;
            lop3.b32 $1, high, 0x000f000f, 0x43084308, 0x6a;
            shr.u32 low, low, 4;
            shr.u32 high, high, 4;
            lop3.b32 $2, low, 0x000f000f, 0x43084308, 0x6a;
            lop3.b32 $3, high, 0x000f000f, 0x43084308, 0x6a;
            fma.rn.bf16x2 $0, $0, one, less;
            fma.rn.bf16x2 $1, $1, one, less;
            fma.rn.bf16x2 $2, $2, one, less;
            fma.rn.bf16x2 $3, $3, one, less;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, less, sixteenth, less72;
            mov.b32 less, 0x64086408;
            mov.b32 sixteenth, 0x2c002c00;
            mov.b32 less72, 0xd480d480;
            prmt.b32 low, $4, 0, 0x4140;
            prmt.b32 high, $4, 0, 0x4342;
            lop3.b32 $0, low, 0x000f000f, 0x64086408, 0x6a;
            lop3.b32 $1, high, 0x000f000f, 0x64086408, 0x6a;
            lop3.b32 $2, low, 0x00f000f0, 0x64806480, 0x6a;
            lop3.b32 $3, high, 0x00f000f0, 0x64806480, 0x6a;
            sub.rn.f16x2 $0, $0, less;
            sub.rn.f16x2 $1, $1, less;
            fma.rn.f16x2 $2, $2, sixteenth, less72;
            fma.rn.f16x2 $3, $3, sixteenth, less72;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    return even, odd


@triton.jit
def activation_operand(x, INTERPRETED: tl.constexpr):
    """Activations as `to_stored_activation` left them, of any shape -> operand of a product."""
    if INTERPRETED and x.dtype == tl.float8e4nv:
        operand = _e4m3_as_half(x.to(tl.uint8, bitcast=True), INTERPRETED).to(tl.float32) * HALF_OF_E4M3
    elif INTERPRETED:
        operand = x.to(tl.float32)
    else:
        operand = x
    return operand


@triton.jit
def weight_operand(
    stored, ENCODING: tl.constexpr, DTYPE: tl.constexpr, PERMUTED: tl.constexpr, INTERPRETED: tl.constexpr
):
    """A tile as it is stored, [rows, columns] -> operand of a product, [rows, columns]; in 4 bits [2 * rows, columns],
    the even rows first. PERMUTED: its columns are in the order of `memory_column`."""
    rows: tl.constexpr = stored.shape[0]
    columns: tl.constexpr = stored.shape[1]
    if PERMUTED:
        steps = stored.reshape(rows, columns // 64, 4, 4, 2, 2)  # thread, step, half, pair
        stored = steps.permute(0, 1, 3, 4, 2, 5).reshape(rows, columns)
    if ENCODING == "int4":
        even, odd = nibbles(stored, DTYPE, INTERPRETED)
        operand = tl.join(even, odd).permute(2, 0, 1).reshape(2 * rows, columns)
    elif ENCODING == "fp8" and stored.dtype == tl.uint8:
        operand = _e4m3_as_half(stored, INTERPRETED)
    elif ENCODING == "fp8":
        operand = activation_operand(stored, INTERPRETED)
    elif INTERPRETED:
        operand = stored.to(tl.float32)
    elif ENCODING == "int8":
        operand = _int8_as_16_bits(stored, DTYPE)
    else:
        operand = stored
    return operand


@triton.jit
def to_stored_activation(
    value, prequant, inverse_scale, ENCODING: tl.constexpr, PREQUANT: tl.constexpr, TARGET: tl.constexpr
):
    """A value in the model's 16-bit dtype -> what a product of this encoding reads, of dtype TARGET.

    prequant: what AWQ multiplies activations by; inverse_scale: of E4M3's activations."""
    if ENCODING == "fp8":
        stored = round_to_e4m3(value.to(tl.float32) * inverse_scale).to(TARGET)
    elif PREQUANT:
        stored = (value.to(tl.float32) * prequant.to(tl.float32)).to(TARGET)
    else:
        stored = value
    return stored


@triton.jit
def float_step(ENCODING: tl.constexpr):
    """What `weight_floats` makes of an integer i is a float f of which i = step * f - zero: -> step, zero."""
    return (1.0, 32896.0) if ENCODING == "int8" else (128.0, 136.0)


@triton.jit
def weight_floats(stored, ENCODING: tl.constexpr, INTERPRETED: tl.constexpr):
    """A tile as it is stored -> float32 for multiply-adds; in 4 bits the even rows' and the odd rows', otherwise twice
    the same. Integers as `float_step` says: their bits are put into a float's, one instruction for each.

    An E4M3 that is read as bytes is a 256th of its value.
    """
    if ENCODING == "int8":
        if INTERPRETED:
            even = stored.to(tl.float32) + 32896.0
        else:
            even = tl.inline_asm_elementwise(
                """{
                .reg .b32 positive, base;
                mov.b32 base, 0x47000000;
                xor.b32 positive, $4, 0x80808080;
                prmt.b32 $0, positive, base, 0x7404;
                prmt.b32 $1, positive, base, 0x7414;
                prmt.b32 $2, positive, base, 0x7424;
                prmt.b32 $3, positive, base, 0x7434;
                }""",
                "=&r,=&r,=&r,=&r,r",
                [stored],
                dtype=tl.float32,
                is_pure=True,
                pack=4,
            )
        odd = even
    elif ENCODING == "int4":
        if INTERPRETED:
            even = (((stored << 4) >> 4).to(tl.float32) + 136.0) / 128
            odd = ((stored >> 4).to(tl.float32) + 136.0) / 128
        else:
            even, odd = tl.inline_asm_elementwise(
                """{
                .reg .b32 low, high, base;
                mov.b32 base, 0x3f000000;
                shr.u32 high, $8, 4;
                lop3.b32 low, $8, 0x0f0f0f0f, 0x88888888, 0x6a;
                lop3.b32 high, high, 0x0f0f0f0f, 0x88888888, 0x6a;
                prmt.b32 $0, low, base, 0x7044;
                prmt.b32 $1, low, base, 0x7144;
                prmt.b32 $2, low, base, 0x7244;
                prmt.b32 $3, low, base, 0x7344;
                prmt.b32 $4, high, base, 0x7044;
                prmt.b32 $5, high, base, 0x7144;
                prmt.b32 $6, high, base, 0x7244;
                prmt.b32 $7, high, base, 0x7344;
                }""",
                "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r",
                [stored],
                dtype=(tl.float32, tl.float32),
                is_pure=True,
                pack=4,
            )
    elif stored.dtype == tl.uint8:
        even = _e4m3_as_half(stored, INTERPRETED).to(tl.float32)
        odd = even
    else:
        even = activation_operand(stored, INTERPRETED).to(tl.float32)
        odd = even
    return even, odd
