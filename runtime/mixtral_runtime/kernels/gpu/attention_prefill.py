"""Prefill attention: spans of more than one query against their keys in the paged cache, themselves among them.

FlashAttention-2 (Dao 2023, arXiv:2307.08691): a program takes a tile of a span's queries with all heads of one KV head,
and goes through the keys that they see. The keys are in the cache by then; the queries are turned here. Tiles are
numbered by the rows of the batch, so that neither the host nor a table says which belong to which span.
"""

import triton
import triton.language as tl

from mixtral_runtime.kernels.gpu.attention_fp8 import as_operand, from_e4m3, product, units
from mixtral_runtime.kernels.gpu.rotary import turned

SPANS_AT_ONCE = tl.constexpr(128)


@triton.jit
def span_of(tile, span_table, spans, QUERIES: tl.constexpr):
    """The span that owns a tile. Span s has the tiles from row // QUERIES + s on; rows grow with s, so that no two
    spans share a tile, though some tiles are nobody's."""
    begun = 0
    for first in range(0, spans, SPANS_AT_ONCE):
        span = first + tl.arange(0, SPANS_AT_ONCE)
        row = tl.load(span_table + span * 4, mask=span < spans, other=0)
        begun += tl.sum(((row // QUERIES + span <= tile) & (span < spans)).to(tl.int32))
    return begun - 1


@triton.jit
def through_keys(
    largest,
    weight_sum,
    total_low,
    total_high,
    query_low,
    query_high,
    position,  # [ROWS], of the queries
    begin,
    stop,
    table,
    head_keys,
    half,
    score_unit,
    TOKEN: tl.constexpr,  # elements from one token's keys to the next one's
    HEAD_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED: tl.constexpr,  # whether some query does not see some key, or a tile ends in another's keys
    FP8: tl.constexpr,
    FP8_UNITS: tl.constexpr,
):
    """The online softmax over keys begin to stop."""
    step: tl.constexpr = HEAD_SIZE // 2
    i = tl.arange(0, step)[None, :]
    inside = tl.arange(0, KEYS)
    block = tl.load(table + (begin + inside) // BLOCK, mask=begin + inside < stop, other=0)
    for tile in tl.range(begin, stop, KEYS, num_stages=STAGES):
        at = tile + inside
        live = (at < stop)[:, None] if MASKED else tl.full([KEYS, 1], True, tl.int1)
        place = head_keys + ((block.to(tl.int64) * BLOCK + at % BLOCK) * TOKEN)[:, None] + i
        if FP8:
            key_low, key_high = from_e4m3(tl.load(place, mask=live, other=0), FP8_UNITS)
            value_low, value_high = from_e4m3(tl.load(place + half, mask=live, other=0), FP8_UNITS)
        else:
            key_low = tl.load(place, mask=live, other=0.0)
            key_high = tl.load(place + step, mask=live, other=0.0)
            value_low = tl.load(place + half, mask=live, other=0.0)
            value_high = tl.load(place + half + step, mask=live, other=0.0)
        block = tl.load(table + (at + KEYS) // BLOCK, mask=at + KEYS < stop, other=0)
        scores = product(query_low, tl.trans(key_low), tl.full([query_low.shape[0], KEYS], 0.0, tl.float32))
        scores = product(query_high, tl.trans(key_high), scores) * score_unit
        if MASKED:
            scores = tl.where((at[None, :] <= position[:, None]) & (at < stop)[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        fade = tl.exp2(largest - larger)
        weight = tl.exp2(scores - larger[:, None])
        weight_sum = weight_sum * fade + tl.sum(weight, 1)
        weight = weight.to(value_low.dtype)
        total_low = product(weight, value_low, total_low * fade[:, None])
        total_high = product(weight, value_high, total_high * fade[:, None])
        largest = larger
    return largest, weight_sum, total_low, total_high


@triton.jit(do_not_specialize=["layer", "spans"], do_not_specialize_on_alignment=["span_table", "block_tables"])
def prefill_kernel(
    qkv,  # [tokens, KV_HEADS * GROUP + 2 * KV_HEADS, HEAD_SIZE]
    cos,
    sin,  # [positions, HEAD_SIZE / 2] float32
    span_table,  # [spans, 4] int64
    block_tables,  # int32
    storage,  # [layers, 2, blocks, BLOCK, KV_HEADS, HEAD_SIZE], or words of two E4M3 as int16
    scales,  # [layers] float32, or None
    out,  # [tokens, KV_HEADS * GROUP, HEAD_SIZE]
    layer,
    half,  # elements of `storage` for a layer's keys: as many as for its values
    spans,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    FILLED: tl.constexpr,  # GROUP, filled up to a power of two
    QUERIES: tl.constexpr,  # tokens of a tile
    HEAD_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,  # tokens of a block of the cache
    KEYS: tl.constexpr,  # of a tile
    STAGES: tl.constexpr,
    FP8: tl.constexpr,
    FP8_UNITS: tl.constexpr,
):
    head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the late positions, which see most keys, go first
    span = span_of(tile, span_table, spans, QUERIES)
    row = tl.load(span_table + span * 4)
    start = tl.load(span_table + span * 4 + 1).to(tl.int32)
    end = tl.load(span_table + span * 4 + 2).to(tl.int32)
    first = tl.load(span_table + span * 4 + 3)
    ahead = (tile - (row // QUERIES + span)).to(tl.int32) * QUERIES  # queries of the span in earlier tiles
    if (end - start == 1) | (start + ahead >= end):
        return

    ROWS: tl.constexpr = QUERIES * FILLED
    token = ahead + tl.arange(0, ROWS) // FILLED
    member = tl.arange(0, ROWS) % FILLED
    position = start + token
    live = ((position < end) & (member < GROUP))[:, None]
    vector = ((row + token) * (KV_HEADS * (GROUP + 2)) + head * GROUP + member)[:, None] * HEAD_SIZE
    at = position[:, None].to(tl.int64)
    query_low = as_operand(turned(qkv + vector, live, cos, sin, at, 0, HEAD_SIZE, FP8), FP8)
    query_high = as_operand(turned(qkv + vector, live, cos, sin, at, 1, HEAD_SIZE, FP8), FP8)
    _, score_unit, value_unit = units(scales, layer, HEAD_SIZE, FP8, FP8_UNITS)

    width: tl.constexpr = HEAD_SIZE // 2 if FP8 else HEAD_SIZE  # elements of `storage`
    head_keys = storage + layer.to(tl.int64) * 2 * half + head * width
    table = block_tables + first
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weight_sum = tl.full([ROWS], 0.0, tl.float32)
    total_low = tl.full([ROWS, HEAD_SIZE // 2], 0.0, tl.float32)
    total_high = tl.full([ROWS, HEAD_SIZE // 2], 0.0, tl.float32)
    stop = tl.minimum(start + ahead + QUERIES, end)
    seen = (start + ahead + 1) // KEYS * KEYS  # whole tiles that every query sees
    largest, weight_sum, total_low, total_high = through_keys(
        largest, weight_sum, total_low, total_high, query_low, query_high, position, 0, seen, table, head_keys, half,
        score_unit, KV_HEADS * width, HEAD_SIZE, BLOCK, KEYS, STAGES, False, FP8, FP8_UNITS,
    )  # fmt: skip
    largest, weight_sum, total_low, total_high = through_keys(
        largest, weight_sum, total_low, total_high, query_low, query_high, position, seen, stop, table, head_keys, half,
        score_unit, KV_HEADS * width, HEAD_SIZE, BLOCK, KEYS, STAGES, True, FP8, FP8_UNITS,
    )  # fmt: skip

    share = value_unit / weight_sum[:, None]
    low = (total_low * share).to(qkv.dtype.element_ty)
    high = (total_high * share).to(qkv.dtype.element_ty)
    result = out + ((row + token) * (KV_HEADS * GROUP) + head * GROUP + member)[:, None] * HEAD_SIZE
    i = tl.arange(0, HEAD_SIZE // 2)[None, :]
    if FP8:
        tl.store(
            result + tl.arange(0, HEAD_SIZE)[None, :],
            tl.reshape(tl.join(low, high), [low.shape[0], HEAD_SIZE]),
            mask=live,
        )
    else:
        tl.store(result + i, low, mask=live)
        tl.store(result + HEAD_SIZE // 2 + i, high, mask=live)
