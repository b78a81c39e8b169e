"""The product of many tokens with a weight, or with the experts' weights that they chose, on the matrix units."""

import triton
import triton.language as tl

from mixtral_runtime.kernels.gpu.matmul_values import (
    GROUP,
    activation_operand,
    memory_column,
    to_stored_activation,
    weight_operand,
)


@triton.jit(do_not_specialize=["pairs", "token_tiles"])  # or a batch of another size would compile anew
def tiled_product(
    x,  # [rows of x, K], as `prepare` leaves them
    weight,  # [experts, rows, K] as it is stored
    scales,  # int8 [experts, N] float32, fp8 [experts] float32, int4 [experts, N, K / 128]
    offsets,  # int4 with offsets: int8 [experts, N, K / 128]
    order,  # ROUTED: [tiles * BLOCK_M] int32, the pairs by expert; what is not a pair is `pairs` or more
    tile_experts,  # ROUTED: [tiles] int32, below 0 where there is no tile
    next_prequant,  # SWIGLU: [experts, inner] of what reads the result
    next_inverse_scale,  # SWIGLU: [1] float32
    out,  # SWIGLU [pairs, inner], else [SPLITS, pairs or tokens, N]
    pairs,  # rows of the result
    token_tiles,
    N: tl.constexpr,  # rows of the weight, not as stored
    K: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    DTYPE: tl.constexpr,  # of the operands
    ROUTED: tl.constexpr,
    ROWS_OF_X: tl.constexpr,  # pair p reads row p // ROWS_OF_X of x
    SWIGLU: tl.constexpr,  # the first half of the weight's rows is `up`, the second `gate`
    NEXT: tl.constexpr,  # SWIGLU: the encoding that reads the result
    NEXT_PREQUANT: tl.constexpr,
    NEXT_PERMUTED: tl.constexpr,
    X_DTYPE: tl.constexpr,  # the model's
    PERMUTED: tl.constexpr,  # x is in the order of `memory_column`
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,  # stored rows of the weight; SWIGLU: half of them `up`
    BLOCK_M: tl.constexpr,  # tokens
    BLOCK_K: tl.constexpr,
    TOKEN_TILES_TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Programs that read the same rows of the weight are next to each other, so that device memory is read once.

    A program's result is [weight rows, tokens]: the weight is the first operand, which Hopper's matrix units take from
    registers, where it was converted; tokens are the second, of which there may be few.
    """
    NIBBLES: tl.constexpr = 2 if ENCODING == "int4" else 1
    HALVES: tl.constexpr = 2 if SWIGLU else 1
    STORED: tl.constexpr = N // NIBBLES // HALVES  # stored rows of one half
    ROWS: tl.constexpr = BLOCK_N // HALVES
    BLOCKS: tl.constexpr = (STORED + ROWS - 1) // ROWS
    STEPS: tl.constexpr = ((K + BLOCK_K - 1) // BLOCK_K + SPLITS - 1) // SPLITS
    # For each group of token tiles: the splits, in each the blocks of rows, in each the tiles of the group.
    per_group = BLOCKS * SPLITS * TOKEN_TILES_TOGETHER
    program = tl.program_id(0)
    first_tile = program // per_group * TOKEN_TILES_TOGETHER
    in_group = tl.minimum(token_tiles - first_tile, TOKEN_TILES_TOGETHER)
    tile = first_tile + program % per_group % in_group
    block = program % per_group // in_group % BLOCKS
    split = program % per_group // in_group // BLOCKS
    if ROUTED:
        expert = tl.load(tile_experts + tile).to(tl.int64)
        if expert < 0:
            return
        pair = tl.load(order + tile * BLOCK_M + tl.arange(0, BLOCK_M))
    else:
        expert = tl.zeros((), tl.int64)
        pair = tile * BLOCK_M + tl.arange(0, BLOCK_M)

    place = tl.arange(0, BLOCK_N)
    stored_row = tl.minimum(block * ROWS + place % ROWS, STORED - 1) + place // ROWS * STORED
    column = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    x_row = tl.where(pair < pairs, pair // ROWS_OF_X, 0)
    weight_base = weight + expert * (N // NIBBLES * K)
    weight_at = stored_row[:, None] * K + column[None, :]  # 32 bits: half the registers of addresses
    x_at = x_row[:, None] * K + column[None, :]

    M: tl.constexpr = BLOCK_N * NIBBLES
    wide = tl.arange(0, M)
    wide_place = wide % BLOCK_N  # the even rows, then the odd
    row = tl.minimum(block * ROWS + wide_place % ROWS, STORED - 1) + wide_place // ROWS * STORED
    row = row * NIBBLES + wide // BLOCK_N
    group_at = (expert * N + row) * (K // GROUP)

    total = tl.zeros((M, BLOCK_M), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        start = step * BLOCK_K
        if K % BLOCK_K == 0 and K // BLOCK_K % SPLITS == 0:
            stored = tl.load(weight_base + start + weight_at)
            activations = tl.load(x + start + x_at)
        else:
            stored = tl.load(weight_base + start + weight_at, mask=(column + start < K)[None, :], other=0.0)
            activations = tl.load(x + start + x_at, mask=(column + start < K)[None, :], other=0.0)
        operand = weight_operand(stored, ENCODING, DTYPE, PERMUTED, INTERPRETED)
        tokens = tl.trans(activation_operand(activations, INTERPRETED))
        if INTERPRETED:
            operand = operand.to(tl.float32)
            tokens = tokens.to(tl.float32)
        if ENCODING == "int4":
            group = tl.minimum((split * STEPS * BLOCK_K + start) // GROUP, K // GROUP - 1)
            if HAS_OFFSETS:  # sums of small integers are exact in 16 bits
                operand += tl.load(offsets + group_at + group).to(operand.dtype)[:, None]
            part = tl.dot(operand, tokens)
            total += part * tl.load(scales + group_at + group).to(tl.float32)[:, None]
        elif ENCODING == "fp8":
            # The matrix units add E4M3's products in fewer than float32's bits: no longer than one step.
            total += tl.dot(operand, tokens)
        else:
            total = tl.dot(operand, tokens, total)

    if ENCODING == "int8":
        total *= tl.load(scales + expert * N + row)[:, None]
    if ENCODING == "fp8":
        total *= tl.load(scales + expert)
    result = tl.trans(total)  # [BLOCK_M, M]
    if SWIGLU:
        halves = result.reshape(BLOCK_M, NIBBLES, 2, ROWS).permute(0, 1, 3, 2)
        up, gate = tl.split(halves)
        inner = (up * gate / (1 + tl.exp(-gate))).reshape(BLOCK_M, NIBBLES * ROWS)
        here = tl.arange(0, NIBBLES * ROWS)
        stored_here = block * ROWS + here % ROWS
        n = stored_here * NIBBLES + here // ROWS
        width: tl.constexpr = N // 2
        prequant = 1.0
        if NEXT_PREQUANT:
            prequant = tl.load(next_prequant + expert * width + n, mask=stored_here < STORED, other=0)[None, :]
        inverse_scale = tl.load(next_inverse_scale) if NEXT == "fp8" else 1.0
        inner = to_stored_activation(
            inner.to(X_DTYPE), prequant, inverse_scale, NEXT, NEXT_PREQUANT, out.dtype.element_ty
        )
        at = memory_column(n) if NEXT_PERMUTED else n
        tl.store(
            out + pair[:, None].to(tl.int64) * width + at[None, :],
            inner,
            mask=(pair < pairs)[:, None] & (stored_here < STORED)[None, :],
        )
    else:
        stored_here = block * ROWS + wide_place
        tl.store(
            out + (split.to(tl.int64) * pairs + pair[:, None]) * N + row[None, :],
            result.to(out.dtype.element_ty),
            mask=(pair < pairs)[:, None] & (stored_here < STORED)[None, :],
        )
