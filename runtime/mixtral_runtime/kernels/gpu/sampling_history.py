"""What sampling keeps of a sequence's tokens, on the device and one token longer with every step, in a launch each."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from mixtral_runtime.kernels.gpu.sampling import Rows

BLOCK = 128  # rows per program of `append`
WINDOW = 32  # tokens of a bad sequence, compared at once


def append(sampled: Tensor, rows: Rows, tokens: Tensor, lengths: Tensor) -> None:
    """Each row has one more token. sampled: [rows] int64; tokens: [places, capacity] int64 with room for one more;
    lengths: [places] int64."""
    if len(sampled):
        _append[(triton.cdiv(len(sampled), BLOCK),)](
            sampled,
            rows.whole,
            tokens,
            tokens.stride(0),
            lengths,
            rows.counts,
            rows.seen,
            len(sampled),
            rows.seen.shape[-1],
            BLOCK=BLOCK,
            num_warps=4,
        )


@triton.jit(do_not_specialize=["capacity", "rows"])
def _append(
    sampled_ptr,
    whole_ptr,
    tokens_ptr,
    capacity,
    lengths_ptr,
    counts_ptr,
    seen_ptr,
    rows,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    step = tl.load(whole_ptr + row, mask=inside)
    tl.store(whole_ptr + row, step + 1, mask=inside)
    sampled = tl.load(sampled_ptr + row, mask=inside, other=0)
    place = tl.load(whole_ptr + 5 * rows + row, mask=inside, other=-1)
    tracked = place >= 0
    length = tl.load(lengths_ptr + place, mask=tracked, other=0)
    tl.store(tokens_ptr + place * capacity + length, sampled, mask=tracked)
    tl.store(lengths_ptr + place, length + 1, mask=tracked)
    count = tl.load(counts_ptr + place * vocab + sampled, mask=tracked, other=0.0)
    tl.store(counts_ptr + place * vocab + sampled, count + 1.0, mask=tracked)
    tl.store(seen_ptr + place * vocab + sampled, tl.full([BLOCK], 1, tl.uint8), mask=tracked)


@dataclass(frozen=True, slots=True)
class BadSequences:
    """Of more than one token. groups: [groups, 4] int64, those that share a row and a last token: where it is in the
    flattened bias, the row's place in the history, the first of `sequences`, how many. otherwise: [groups] float32, the
    bias of the last token while it is not banned. sequences: [all, 2] int64: the first of `before`, how many. before:
    int64, the tokens of a sequence but the last."""

    groups: Tensor
    otherwise: Tensor
    sequences: Tensor
    before: Tensor


def ban_completed(bad: BadSequences, bias: Tensor, tokens: Tensor, lengths: Tensor) -> None:
    """Bans a last token where the newest tokens of the row are the others. bias: [biased rows, vocab] float32."""
    if len(bad.groups):
        _ban_completed[(len(bad.groups),)](
            bad.groups,
            bad.otherwise,
            bad.sequences,
            bad.before,
            bias,
            tokens,
            tokens.stride(0),
            lengths,
            WINDOW=WINDOW,
            num_warps=1,
        )


@triton.jit(do_not_specialize=["capacity"])
def _ban_completed(
    groups_ptr,
    otherwise_ptr,
    sequences_ptr,
    before_ptr,
    bias_ptr,
    tokens_ptr,
    capacity,
    lengths_ptr,
    WINDOW: tl.constexpr,
):
    group = tl.program_id(0)
    banned = tl.load(groups_ptr + group * 4)
    place = tl.load(groups_ptr + group * 4 + 1)
    first = tl.load(groups_ptr + group * 4 + 2)
    count = tl.load(groups_ptr + group * 4 + 3)
    length = tl.load(lengths_ptr + place)
    bias = tl.load(otherwise_ptr + group)
    for sequence in range(first, first + count):
        start = tl.load(sequences_ptr + sequence * 2)
        size = tl.load(sequences_ptr + sequence * 2 + 1)
        missing = 0
        for done in range(0, size, WINDOW):
            index = done + tl.arange(0, WINDOW)
            position = length - size + index
            wanted = tl.load(before_ptr + start + index, mask=index < size, other=-1)
            found = tl.load(tokens_ptr + place * capacity + position, mask=(index < size) & (position >= 0), other=-1)
            missing += tl.sum((found != wanted).to(tl.int32), axis=0)
        bias = tl.where(missing == 0, float("-inf"), bias)
    tl.store(bias_ptr + banned, bias)
