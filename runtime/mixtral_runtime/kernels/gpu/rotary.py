"""Rotary positions and the write to the paged KV cache: the key and the value of each new token.

A head's elements are taken in two parts: the halves that rotary positions mix, or, for an FP8 cache, those that share
words of 16 bits. Which is which matters to nobody else: sums over a head's elements have no order of their own.
"""

import triton
import triton.language as tl

from mixtral_runtime.kernels.gpu.attention_fp8 import to_words


@triton.jit
def part(PART: tl.constexpr, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr):
    """-> [1, HEAD_SIZE / 2], the elements of part 0 or 1."""
    step: tl.constexpr = 2 if FP8 else 1
    first: tl.constexpr = PART if FP8 else PART * (HEAD_SIZE // 2)
    return first + step * tl.arange(0, HEAD_SIZE // 2)[None, :]


@triton.jit
def turned(vector, live, cos, sin, position, PART: tl.constexpr, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr):
    """A part of the vectors at `vector`, turned by `position` (pytorch/rotary.py), in their dtype.

    vector, live, position: [rows, 1]; cos, sin: [positions, HEAD_SIZE / 2] float32.
    """
    half: tl.constexpr = HEAD_SIZE // 2
    lane = part(PART, HEAD_SIZE, FP8)
    own = tl.load(vector + lane, mask=live, other=0.0)
    other = tl.load(vector + (lane + half) % HEAD_SIZE, mask=live, other=0.0).to(tl.float32)
    angle = position * half + lane % half
    cosine = tl.load(cos + angle, mask=live, other=0.0)
    sine = tl.load(sin + angle, mask=live, other=0.0)
    mixed = own.to(tl.float32) * cosine + tl.where(lane < half, -other, other) * sine
    return mixed.to(own.dtype)


@triton.jit
def store(place, low, high, scale, live, HEAD_SIZE: tl.constexpr, FP8: tl.constexpr):
    """Two parts [rows, HEAD_SIZE / 2] of keys or values to the cache at `place` [rows, 1]."""
    i = tl.arange(0, HEAD_SIZE // 2)[None, :]
    if FP8:
        tl.store(place + i, to_words(low.to(tl.float32), high.to(tl.float32), scale), mask=live)
    else:
        tl.store(place + i, low, mask=live)
        tl.store(place + HEAD_SIZE // 2 + i, high, mask=live)


@triton.jit
def write_token(
    vector,  # [rows, 1], the token's keys; its values lie KV_HEADS further
    live,
    position,
    slot,
    head,
    cos,
    sin,
    layer_keys,
    half,
    scale,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    FP8: tl.constexpr,
):
    """Writes keys and values of one head -> the parts of both, as they were before an FP8 cache rounded them."""
    key_low = turned(vector, live, cos, sin, position, 0, HEAD_SIZE, FP8)
    key_high = turned(vector, live, cos, sin, position, 1, HEAD_SIZE, FP8)
    values = vector + KV_HEADS * HEAD_SIZE
    value_low = tl.load(values + part(0, HEAD_SIZE, FP8), mask=live, other=0.0)
    value_high = tl.load(values + part(1, HEAD_SIZE, FP8), mask=live, other=0.0)
    width: tl.constexpr = HEAD_SIZE // 2 if FP8 else HEAD_SIZE  # elements of `storage`
    place = layer_keys + (slot * KV_HEADS + head) * width
    store(place, key_low, key_high, scale, live, HEAD_SIZE, FP8)
    store(place + half, value_low, value_high, scale, live, HEAD_SIZE, FP8)
    return key_low, key_high, value_low, value_high


@triton.jit(do_not_specialize=["layer", "tokens"], do_not_specialize_on_alignment=["positions", "slots"])
def write_kv_kernel(
    qkv,  # [tokens, heads + 2 * KV_HEADS, HEAD_SIZE]
    cos,
    sin,  # [positions, HEAD_SIZE / 2] float32
    positions,
    slots,  # [tokens] int64
    storage,  # [layers, 2, blocks, BLOCK, KV_HEADS, HEAD_SIZE], or words of two E4M3 as int16
    scales,  # [layers] float32, or None
    layer,
    tokens,
    half,  # elements of `storage` for a layer's keys: as many as for its values
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,  # of a program
    FP8: tl.constexpr,
):
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    live = token < tokens
    position = tl.load(positions + token, mask=live, other=0)
    slot = tl.load(slots + token, mask=live, other=0)
    scale = 1.0
    if FP8:
        scale = tl.load(scales + layer)
    vector = qkv + (token.to(tl.int64) * (HEADS + 2 * KV_HEADS) + HEADS + head) * HEAD_SIZE
    layer_keys = storage + layer.to(tl.int64) * 2 * half
    write_token(vector, live, position, slot, head, cos, sin, layer_keys, half, scale, KV_HEADS, HEAD_SIZE, FP8)
