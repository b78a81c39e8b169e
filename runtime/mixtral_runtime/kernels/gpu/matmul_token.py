"""The product of one token with a weight, or with each expert that it chose: reads bytes as fast as memory gives them.

There is no operand of the matrix units to fill with one token, so these are float32 multiply-adds. Every thread reads
16 bytes of a row at a time and adds their products before anything else.
"""

import triton
import triton.language as tl

from mixtral_runtime.kernels.gpu.matmul_values import GROUP, float_step, to_stored_activation, weight_floats


@triton.jit
def one_token_product(
    x,  # [rows of x, K], the model's dtype or as `prepare` leaves it
    weight,  # [experts, rows, K] as it is stored
    scales,
    offsets,
    prequant_scale,  # what x is still to be multiplied by
    inverse_scale,
    experts,  # ROUTED: [pairs] int64
    weights,  # SUMMED: [pairs] float32
    next_prequant,
    next_inverse_scale,
    out,  # SWIGLU [pairs, N / 2], else [tokens, N]
    N: tl.constexpr,
    K: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    PREPARED: tl.constexpr,  # x needs no more than to be read
    PREQUANT: tl.constexpr,
    ROUTED: tl.constexpr,
    CHOICES: tl.constexpr,  # pairs that are summed
    SUMMED: tl.constexpr,
    ROWS_OF_X: tl.constexpr,  # pair p reads row p // ROWS_OF_X of x
    SWIGLU: tl.constexpr,
    NEXT: tl.constexpr,
    NEXT_PREQUANT: tl.constexpr,
    X_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,  # stored rows; SWIGLU: half of them `up`
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    NIBBLES: tl.constexpr = 2 if ENCODING == "int4" else 1
    HALVES: tl.constexpr = 2 if SWIGLU else 1
    STORED: tl.constexpr = N // NIBBLES // HALVES  # stored rows of one half
    ROWS: tl.constexpr = BLOCK_N // HALVES
    CHUNK: tl.constexpr = 8 if ENCODING == "dense" else 16  # columns of 16 bytes
    CHUNKS: tl.constexpr = BLOCK_K // CHUNK
    block = tl.program_id(0)
    place = tl.arange(0, BLOCK_N)
    stored_row = tl.minimum(block * ROWS + place % ROWS, STORED - 1) + place // ROWS * STORED
    column = tl.arange(0, BLOCK_K)
    chunk = tl.arange(0, CHUNKS)
    even_total = tl.zeros((BLOCK_N,), tl.float32)
    odd_total = tl.zeros((BLOCK_N,), tl.float32)
    expert = tl.zeros((), tl.int64)
    for choice in range(CHOICES):
        pair = tl.program_id(1) * CHOICES + choice
        if ROUTED:
            expert = tl.load(experts + pair)
        weight_at = weight + (expert * (N // NIBBLES) + stored_row[:, None]) * K + column[None, :]
        x_at = x + (pair // ROWS_OF_X).to(tl.int64) * K + column
        group_at = (expert * N + stored_row[:, None] * NIBBLES) * (K // GROUP) + chunk[None, :] * CHUNK // GROUP
        even_sum = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
        odd_sum = tl.zeros((BLOCK_N, CHUNKS), tl.float32)
        for step in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K, num_stages=STAGES):
            start = step * BLOCK_K
            if K % BLOCK_K == 0:
                stored = tl.load(weight_at + start)
                values = tl.load(x_at + start)
            else:
                stored = tl.load(weight_at + start, mask=(column + start < K)[None, :], other=0.0)
                values = tl.load(x_at + start, mask=column + start < K, other=0.0)
            if not PREPARED:
                prequant = 1.0
                if PREQUANT:
                    prequant = tl.load(prequant_scale + expert * K + column + start, mask=column + start < K, other=0)
                inverse = tl.load(inverse_scale) if ENCODING == "fp8" else 1.0
                target: tl.constexpr = tl.float16 if ENCODING == "fp8" else X_DTYPE
                values = to_stored_activation(values, prequant, inverse, ENCODING, PREQUANT, target)
            values = values.to(tl.float32)
            even, odd = weight_floats(stored, ENCODING, INTERPRETED)
            even_part = tl.sum((even * values[None, :]).reshape(BLOCK_N, CHUNKS, CHUNK), 2)
            if ENCODING == "int8" or ENCODING == "int4":
                # The floats are the stored integers plus a constant, in steps of a size: taken off once for 16.
                x_sum = tl.sum(values.reshape(CHUNKS, CHUNK), 1)[None, :]
                unit, zero = float_step(ENCODING)
                even_part = unit * even_part - zero * x_sum
            if ENCODING == "int4":
                odd_part = tl.sum((odd * values[None, :]).reshape(BLOCK_N, CHUNKS, CHUNK), 2)
                odd_part = unit * odd_part - zero * x_sum
                group = group_at + start // GROUP
                inside = (chunk * CHUNK + start < K)[None, :]
                if HAS_OFFSETS:
                    even_part += x_sum * tl.load(offsets + group, mask=inside, other=0).to(tl.float32)
                    odd_part += x_sum * tl.load(offsets + group + K // GROUP, mask=inside, other=0).to(tl.float32)
                even_part *= tl.load(scales + group, mask=inside, other=0).to(tl.float32)
                odd_part *= tl.load(scales + group + K // GROUP, mask=inside, other=0).to(tl.float32)
                odd_sum += odd_part
            even_sum += even_part
        even_row = tl.sum(even_sum, 1)
        odd_row = tl.sum(odd_sum, 1)
        if ENCODING == "int8":
            even_row *= tl.load(scales + expert * N + stored_row)
        if ENCODING == "fp8":
            even_row *= tl.load(scales + expert)
        if SUMMED:
            factor = tl.load(weights + pair)
            even_row *= factor
            odd_row *= factor
        even_total += even_row
        odd_total += odd_row

    result = tl.join(even_total, odd_total) if ENCODING == "int4" else even_total[:, None]  # [BLOCK_N, NIBBLES]
    here = tl.arange(0, ROWS * NIBBLES)
    stored_here = block * ROWS + here // NIBBLES
    n = block * ROWS * NIBBLES + here
    line = tl.program_id(1).to(tl.int64)
    if SWIGLU:
        up, gate = tl.split(result.reshape(2, ROWS * NIBBLES).permute(1, 0))
        inner = up * gate / (1 + tl.exp(-gate))
        prequant = 1.0
        if NEXT_PREQUANT:
            prequant = tl.load(next_prequant + expert * (N // 2) + n, mask=stored_here < STORED, other=0)
        inverse = tl.load(next_inverse_scale) if NEXT == "fp8" else 1.0
        inner = to_stored_activation(inner.to(X_DTYPE), prequant, inverse, NEXT, NEXT_PREQUANT, out.dtype.element_ty)
        tl.store(out + line * (N // 2) + n, inner, mask=stored_here < STORED)
    else:
        flat = result.reshape(ROWS * NIBBLES)
        tl.store(out + line * N + n, flat.to(out.dtype.element_ty), mask=stored_here < STORED)
