"""Decode attention: one query of each span against its keys in the paged cache, split over the sequence.

Flash-decoding (Dao et al. 2023): the keys of a span are cut in equal pieces, a program for each piece and KV head, with
the online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867. The last program of a span and KV head to arrive
adds the partial results, always in the same order. The query and the new key are turned here, and the new key and value
are written to the cache and never read from it, so one launch does it all.

Keys are the rows of the products and the group's queries their columns: of columns the matrix units need only 8, and a
thread holds few of the sums.
"""

import triton
import triton.language as tl

from mixtral_runtime.kernels.gpu.attention_fp8 import as_operand, from_e4m3, product, to_words, units
from mixtral_runtime.kernels.gpu.rotary import turned, write_token


@triton.jit
def read_tile(place, half, live, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr, FP8_UNITS: tl.constexpr):
    """A tile of the cache: the two parts of the keys [keys, HEAD_SIZE / 2] and of the values [HEAD_SIZE / 2, keys].

    place, live: [keys]. The values are copied as columns: what would be turned after the copy is not copied
    asynchronously by Triton 3.6.
    """
    step: tl.constexpr = HEAD_SIZE // 2
    i = tl.arange(0, step)
    key_at = place[:, None] + i[None, :]
    value_at = place[None, :] + half + i[:, None]
    if FP8:
        key_low, key_high = from_e4m3(tl.load(key_at, mask=live[:, None], other=0), FP8_UNITS)
        value_low, value_high = from_e4m3(tl.load(value_at, mask=live[None, :], other=0), FP8_UNITS)
    else:
        key_low = tl.load(key_at, mask=live[:, None], other=0.0)
        key_high = tl.load(key_at + step, mask=live[:, None], other=0.0)
        value_low = tl.load(value_at, mask=live[None, :], other=0.0)
        value_high = tl.load(value_at + step, mask=live[None, :], other=0.0)
    return key_low, key_high, value_low, value_high


@triton.jit(
    do_not_specialize=["layer", "splits"], do_not_specialize_on_alignment=["slots", "span_table", "block_tables"]
)
def decode_kernel(
    qkv,  # [tokens, KV_HEADS * GROUP + 2 * KV_HEADS, HEAD_SIZE]
    cos,
    sin,  # [positions, HEAD_SIZE / 2] float32
    slots,  # [tokens] int64
    span_table,  # [spans, 4] int64
    block_tables,  # int32
    storage,  # [layers, 2, blocks, BLOCK, KV_HEADS, HEAD_SIZE], or words of two E4M3 as int16
    scales,  # [layers] float32, or None
    out,  # [tokens, KV_HEADS * GROUP, HEAD_SIZE]
    partials,  # [programs, GROUP, HEAD_SIZE] float32
    sums,  # [programs, 2, GROUP] float32: the largest score, the sum of weights
    arrivals,  # [spans * KV_HEADS] int32, zeros before and after
    layer,
    half,  # elements of `storage` for a layer's keys: as many as for its values
    splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,  # GROUP, filled up for the matrix units
    HEAD_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,  # tokens of a block of the cache
    KEYS: tl.constexpr,  # of a tile
    LEAST_KEYS: tl.constexpr,  # of a piece, a multiple of KEYS
    MERGED: tl.constexpr,  # pieces added at once
    STAGES: tl.constexpr,
    FP8: tl.constexpr,
    FP8_UNITS: tl.constexpr,
):
    head = tl.program_id(0)
    piece = tl.program_id(1)
    span = tl.program_id(2)
    row = tl.load(span_table + span * 4)
    start = tl.load(span_table + span * 4 + 1)
    end = tl.load(span_table + span * 4 + 2)
    first = tl.load(span_table + span * 4 + 3)
    if end - start != 1:
        return
    past = start.to(tl.int32)  # keys in the cache
    tiles = (past + KEYS - 1) // KEYS
    size = tl.maximum((tiles + splits - 1) // splits * KEYS, LEAST_KEYS)
    pieces = tl.maximum((past + size - 1) // size, 1)
    if piece >= pieces:
        return
    begin = piece * size
    stop = tl.minimum(begin + size, past)
    table = block_tables + first
    inside = tl.arange(0, KEYS)
    block = tl.load(table + (begin + inside) // BLOCK, mask=begin + inside < stop, other=0)

    rows = tl.arange(0, ROWS)
    tokens = qkv + row * (KV_HEADS * (GROUP + 2) * HEAD_SIZE)
    query = tokens + (head * GROUP + rows[:, None]) * HEAD_SIZE
    real = rows[:, None] < GROUP
    query_low = turned(query, real, cos, sin, start, 0, HEAD_SIZE, FP8)
    query_high = turned(query, real, cos, sin, start, 1, HEAD_SIZE, FP8)
    query_low = as_operand(query_low, FP8)
    query_high = as_operand(query_high, FP8)
    scale, score_unit, value_unit = units(scales, layer, HEAD_SIZE, FP8, FP8_UNITS)

    layer_keys = storage + layer.to(tl.int64) * 2 * half
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weights = tl.full([KEYS, ROWS], 0.0, tl.float32)  # summed over the tiles; over a tile's keys at the end
    total_low = tl.full([HEAD_SIZE // 2, ROWS], 0.0, tl.float32)
    total_high = tl.full([HEAD_SIZE // 2, ROWS], 0.0, tl.float32)
    if piece == 0:  # begins with the new token
        one = tl.full([1, 1], 0, tl.int64)
        vector = tokens + (KV_HEADS * GROUP + head) * HEAD_SIZE + one
        slot = tl.load(slots + row) + one
        key_low, key_high, value_low, value_high = write_token(
            vector, one == 0, start, slot, head, cos, sin, layer_keys, half, scale, KV_HEADS, HEAD_SIZE, FP8
        )
        if FP8:  # what others will read
            key_low, key_high = from_e4m3(to_words(key_low.to(tl.float32), key_high.to(tl.float32), scale), FP8_UNITS)
            value_low, value_high = from_e4m3(
                to_words(value_low.to(tl.float32), value_high.to(tl.float32), scale), FP8_UNITS
            )
        products = query_low.to(tl.float32) * key_low.to(tl.float32)
        products += query_high.to(tl.float32) * key_high.to(tl.float32)
        largest = tl.sum(products, 1) * score_unit
        weights = tl.where(tl.arange(0, KEYS)[:, None] == 0, 1.0, weights)
        total_low += tl.trans(value_low.to(tl.float32))
        total_high += tl.trans(value_high.to(tl.float32))

    operand_low = tl.trans(query_low)  # [HEAD_SIZE / 2, ROWS]
    operand_high = tl.trans(query_high)
    width: tl.constexpr = HEAD_SIZE // 2 if FP8 else HEAD_SIZE
    for tile in tl.range(begin, stop, KEYS, num_stages=STAGES):
        at = tile + inside
        live = at < stop  # what else lies in the block is another's, and may be NaN
        slot = block.to(tl.int64) * BLOCK + at % BLOCK
        place = layer_keys + (slot * KV_HEADS + head) * width
        key_low, key_high, value_low, value_high = read_tile(place, half, live, HEAD_SIZE, FP8, FP8_UNITS)
        # The blocks of the next tile are looked up while this one is on its way.
        block = tl.load(table + (at + KEYS) // BLOCK, mask=at + KEYS < stop, other=0)
        scores = product(key_low, operand_low, tl.full([KEYS, ROWS], 0.0, tl.float32))
        scores = product(key_high, operand_high, scores)
        scores = tl.where(live[:, None], scores * score_unit, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 0))
        fade = tl.exp2(largest - larger)
        weight = tl.exp2(scores - larger[None, :])
        weights = weights * fade[None, :] + weight
        weight = weight.to(value_low.dtype)
        total_low = product(value_low, weight, total_low * fade[None, :])
        total_high = product(value_high, weight, total_high * fade[None, :])
        largest = larger
    weight_sum = tl.sum(weights, 0)

    dtype: tl.constexpr = qkv.dtype.element_ty
    result = out + (row * KV_HEADS + head) * GROUP * HEAD_SIZE
    if pieces > 1:
        base = (span * KV_HEADS + head) * splits
        place = partials + (base + piece) * (GROUP * HEAD_SIZE)
        write_parts(place, total_low, total_high, real, HEAD_SIZE, FP8)
        place = sums + (base + piece) * (2 * GROUP) + rows
        tl.store(place, largest, mask=rows < GROUP)
        tl.store(place + GROUP, weight_sum, mask=rows < GROUP)
        tl.debug_barrier()  # all threads' parts are written before one of them says so
        if tl.atomic_add(arrivals + span * KV_HEADS + head, 1, sem="acq_rel") == pieces - 1:
            tl.store(arrivals + span * KV_HEADS + head, 0)
            merge(partials, sums, base, pieces, result, value_unit, GROUP, HEAD_SIZE, MERGED, dtype)
        return
    share = value_unit / weight_sum[None, :]
    write_parts(result, (total_low * share).to(dtype), (total_high * share).to(dtype), real, HEAD_SIZE, FP8)


@triton.jit
def write_parts(place, low, high, live, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr):
    """Two parts [HEAD_SIZE / 2, rows] -> [rows, HEAD_SIZE] at `place`."""
    low = tl.trans(low)
    high = tl.trans(high)
    vector = place + tl.arange(0, low.shape[0])[:, None] * HEAD_SIZE
    i = tl.arange(0, HEAD_SIZE // 2)[None, :]
    if FP8:
        tl.store(
            vector + tl.arange(0, HEAD_SIZE)[None, :],
            tl.reshape(tl.join(low, high), [low.shape[0], HEAD_SIZE]),
            mask=live,
        )
    else:
        tl.store(vector + i, low, mask=live)
        tl.store(vector + HEAD_SIZE // 2 + i, high, mask=live)


@triton.jit
def merge(
    partials,
    sums,
    base,
    pieces,
    result,
    value_unit,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    MERGED: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Adds the pieces, past the L1 cache, which does not see what other programs wrote. All of the group is one row, of
    which each thread reads its elements' sums, so that nothing is exchanged between threads; MERGED reads at a time."""
    SIZE: tl.constexpr = triton.next_power_of_2(GROUP * HEAD_SIZE)
    element = tl.arange(0, SIZE)
    real = element < GROUP * HEAD_SIZE
    sums += base * (2 * GROUP) + element // HEAD_SIZE
    partials += base * (GROUP * HEAD_SIZE) + element
    largest = tl.full([SIZE], -1e38, tl.float32)  # finite, for elements that are filled up
    for first in range(0, pieces, MERGED):
        for i in tl.static_range(MERGED):
            live = real & (first + i < pieces)
            place = sums + (first + i) * (2 * GROUP)
            high = tl.load(place, mask=live, other=float("-inf"), cache_modifier=".cg")
            largest = tl.maximum(largest, high)
    weight_sum = tl.full([SIZE], 0.0, tl.float32)
    total = tl.full([SIZE], 0.0, tl.float32)
    for first in range(0, pieces, MERGED):
        for i in tl.static_range(MERGED):
            live = real & (first + i < pieces)
            place = sums + (first + i) * (2 * GROUP)
            high = tl.load(place, mask=live, other=float("-inf"), cache_modifier=".cg")
            weight = tl.load(place + GROUP, mask=live, other=0.0, cache_modifier=".cg")
            share = tl.exp2(high - largest)
            part = tl.load(partials + (first + i) * (GROUP * HEAD_SIZE), mask=live, other=0.0, cache_modifier=".cg")
            weight_sum += weight * share
            total += part * share
    tl.store(result + element, (total / weight_sum * value_unit).to(DTYPE), mask=real)
