"""Sampling without the host: from logits to one token per row in two launches, in three where tokens are drawn.

`scan` reads the logits once, split over rows and pieces of the vocabulary: what requests ask of single logits (biases,
penalties, bans, in this order), the largest of each piece, and whether all are finite. `pick` takes the largest of a
row's pieces; rows that are drawn are weighed between the two and drawn in `pick` by `sampling_draw`. What penalties and
bans need is kept dense, a value per token of the vocabulary: to read some megabytes costs less than to look for the few
that matter, and nothing depends on how many there are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixtral_runtime.kernels.gpu.sampling_draw import draw, weigh

LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)  # of float32


@dataclass(frozen=True, slots=True)
class Config:
    """piece: of the vocabulary, per program of `scan` and `weigh`. block: of a row, read at once in a search.
    candidates: that a search keeps in registers when so few are left."""

    piece: int = 2048
    scan_warps: int = 4
    weigh_warps: int = 8
    block: int = 4096
    candidates: int = 2048
    draw_warps: int = 16


def config() -> Config:
    return Config()


@dataclass(frozen=True, slots=True)
class Rows:
    """What a batch asks for, row by row, on the device. whole: [8, rows] int64, see WHOLE; real: [6, rows] float64, see
    REAL; stops: [rows, any number] int64, tokens that end a row, -1 for none. bias: [biased rows, vocab] float32,
    -inf for a token that is always banned. counts: [places, vocab] float32, how often the output has each token; seen:
    [places, vocab] uint8, whether prompt or output have it."""

    whole: Tensor
    real: Tensor
    stops: Tensor
    bias: Tensor
    counts: Tensor
    seen: Tensor
    adjusted: bool  # whether a row has a bias, penalty or ban
    drawn: bool  # whether a row is drawn


# Tokens generated, hashed seed, top_k, row in `bias`, place in `counts` and `seen` of a row that is penalised, place in
# the history of one that is tracked (-1 for none), end token (-1 for none), and before how many tokens it is banned.
WHOLE = STEPS, SEEDS, TOP_K, BIAS, PENALISED, TRACKED, END, LEAST = tuple(range(8))
# Temperature, 0 for a greedy row.
REAL = TEMPERATURE, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY = tuple(range(6))


def sample(logits: Tensor, rows: Rows) -> Tensor:
    """logits: [rows, vocab] of any float type -> [3, rows] int64: the tokens, whether all logits were finite, and
    whether the token ends the row."""
    count, vocab = logits.shape
    assert logits.stride(1) == 1
    tuned = config()
    pieces = triton.cdiv(vocab, tuned.piece)
    device = logits.device
    result = torch.empty(3, count, dtype=torch.int64, device=device)
    if not count:
        return result
    tops = torch.empty(count, pieces, dtype=torch.float32, device=device)
    top_ids = torch.empty(count, pieces, dtype=torch.int32, device=device)
    finite = torch.empty(count, pieces, dtype=torch.int32, device=device)
    drawn = count if rows.drawn else 0
    values = torch.empty(drawn, vocab, dtype=torch.float32, device=device)
    weights = torch.empty(drawn, vocab, dtype=torch.float64, device=device)
    sums = torch.empty(drawn, 2, pieces, dtype=torch.float64, device=device)
    numbers = torch.empty(drawn, pieces, dtype=torch.int32, device=device)
    bottoms = torch.empty(drawn, pieces, dtype=torch.float32, device=device)
    candidates = torch.empty(drawn, tuned.candidates, dtype=torch.float32, device=device)
    candidate_weights = torch.empty(drawn, tuned.candidates, dtype=torch.float64, device=device)
    sizes = {"VOCAB": vocab, "PIECE": tuned.piece, "PIECES_BLOCK": triton.next_power_of_2(pieces)}
    _scan[(count, pieces)](
        logits,
        logits.stride(0),
        rows.whole,
        rows.real,
        rows.bias,
        rows.counts,
        rows.seen,
        values,
        tops,
        top_ids,
        finite,
        VOCAB=vocab,
        PIECE=tuned.piece,
        ADJUSTED=rows.adjusted,
        DRAWN=rows.drawn,
        num_warps=tuned.scan_warps,
        enable_fp_fusion=False,  # the penalties are rounded as on a CPU
    )
    if rows.drawn:
        weigh[(count, pieces)](
            values, tops, rows.real, weights, sums, numbers, bottoms, **sizes, num_warps=tuned.weigh_warps
        )
    _pick[(count,)](
        tops,
        top_ids,
        finite,
        rows.whole,
        rows.real,
        rows.stops,
        values,
        weights,
        sums,
        numbers,
        bottoms,
        candidates,
        candidate_weights,
        result,
        vocab,
        rows.stops.shape[1],
        **sizes,
        DRAWN=rows.drawn,
        BLOCK=tuned.block,
        CANDIDATES=tuned.candidates,
        num_warps=tuned.draw_warps if rows.drawn else 1,
    )
    return result


@triton.jit
def _scan(
    logits_ptr,
    stride,
    whole_ptr,
    real_ptr,
    bias_ptr,
    counts_ptr,
    seen_ptr,
    values_ptr,  # [rows, VOCAB]: the logits of drawn rows, as adjusted
    tops_ptr,  # [rows, pieces]
    top_ids_ptr,  # [rows, pieces]: the first of the largest
    finite_ptr,  # [rows, pieces]
    VOCAB: tl.constexpr,
    PIECE: tl.constexpr,
    ADJUSTED: tl.constexpr,
    DRAWN: tl.constexpr,
):
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, pieces = tl.num_programs(0), tl.num_programs(1)
    tokens = piece * PIECE + tl.arange(0, PIECE)
    inside = tokens < VOCAB
    logits = tl.load(logits_ptr + row * stride + tokens, mask=inside, other=0.0).to(tl.float32)
    finite = tl.abs(logits) <= LARGEST  # NaN is not
    # As torch.nan_to_num: a row that overflowed has a token too, which nobody gets.
    values = tl.where(logits == logits, tl.minimum(tl.maximum(logits, -LARGEST), LARGEST), 0.0)
    if ADJUSTED:
        values = _adjusted(
            values, tokens, inside, row, rows, whole_ptr, real_ptr, bias_ptr, counts_ptr, seen_ptr, VOCAB
        )
    values = tl.where(values == 0.0, 0.0, values)  # not -0.0: equals are told by their bits
    values = tl.where(inside, values, float("-inf"))
    top = tl.max(values, axis=0)
    tl.store(tops_ptr + row * pieces + piece, top)
    tl.store(top_ids_ptr + row * pieces + piece, tl.min(tl.where(values == top, tokens, VOCAB), axis=0))
    tl.store(finite_ptr + row * pieces + piece, tl.min(finite.to(tl.int32), axis=0))
    if DRAWN and tl.load(real_ptr + row) > 0.0:  # the temperature
        tl.store(values_ptr + row * VOCAB + tokens, values, mask=inside)


@triton.jit
def _adjusted(
    values, tokens, inside, row, rows, whole_ptr, real_ptr, bias_ptr, counts_ptr, seen_ptr, VOCAB: tl.constexpr
):
    """Biases, then penalties, then bans: the rules of `pytorch.logit_rules`, rounded alike."""
    biased = tl.load(whole_ptr + 3 * rows + row)
    bias = tl.load(bias_ptr + biased * VOCAB + tokens, mask=tokens < tl.where(biased >= 0, VOCAB, 0), other=0.0)
    banned = bias == float("-inf")
    values += tl.where(banned, 0.0, bias)
    place = tl.load(whole_ptr + 4 * rows + row)
    if place >= 0:
        counts = tl.load(counts_ptr + place * VOCAB + tokens, mask=inside, other=0.0)
        seen = tl.load(seen_ptr + place * VOCAB + tokens, mask=inside, other=0)
        repetition = tl.load(real_ptr + 3 * rows + row).to(tl.float32)
        presence = tl.load(real_ptr + 4 * rows + row).to(tl.float32)
        frequency = tl.load(real_ptr + 5 * rows + row).to(tl.float32)
        repeated = tl.where(values > 0, tl.div_rn(values, repetition + tl.zeros_like(values)), values * repetition)
        repeated -= tl.where(counts > 0, presence, 0.0) + frequency * counts
        values = tl.where(seen != 0, repeated, values)
    step, least = tl.load(whole_ptr + row), tl.load(whole_ptr + 7 * rows + row)
    end = tl.where(step < least, tl.load(whole_ptr + 6 * rows + row), -1)
    return tl.where(banned | (tokens == end), -LARGEST, values)


@triton.jit(do_not_specialize=["stops"])
def _pick(
    tops_ptr,
    top_ids_ptr,
    finite_ptr,
    whole_ptr,
    real_ptr,
    stops_ptr,
    values_ptr,
    weights_ptr,
    sums_ptr,
    numbers_ptr,
    bottoms_ptr,
    candidates_ptr,
    candidate_weights_ptr,
    result_ptr,  # [3, rows]
    vocab,  # not a constant, so that the compiler does not unroll the loops over a row into a heap of registers
    stops,
    VOCAB: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES_BLOCK: tl.constexpr,
    DRAWN: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    PIECES: tl.constexpr = (VOCAB + PIECE - 1) // PIECE
    pieces = tl.arange(0, PIECES_BLOCK)
    tops = tl.load(tops_ptr + row * PIECES + pieces, mask=pieces < PIECES, other=float("-inf"))
    top_ids = tl.load(top_ids_ptr + row * PIECES + pieces, mask=pieces < PIECES, other=VOCAB)
    top = tl.max(tops, axis=0)
    token = tl.min(tl.where(tops == top, top_ids, VOCAB), axis=0)
    if DRAWN and tl.load(real_ptr + row) > 0.0:
        token = draw(
            token,
            top,
            row,
            rows,
            whole_ptr,
            real_ptr,
            values_ptr + row * VOCAB,
            weights_ptr + row * VOCAB,
            sums_ptr + row * 2 * PIECES,
            numbers_ptr + row * PIECES,
            bottoms_ptr + row * PIECES,
            candidates_ptr + row * CANDIDATES,
            candidate_weights_ptr + row * CANDIDATES,
            vocab,
            PIECES,
            PIECES_BLOCK,
            BLOCK,
            CANDIDATES,
        )
    finite = tl.min(tl.load(finite_ptr + row * PIECES + pieces, mask=pieces < PIECES, other=1), axis=0)
    stopped = token < 0
    for number in range(stops):
        stopped |= tl.load(stops_ptr + row * stops + number) == token
    tl.store(result_ptr + row, token.to(tl.int64))
    tl.store(result_ptr + rows + row, finite.to(tl.int64))
    tl.store(result_ptr + 2 * rows + row, stopped.to(tl.int64))
