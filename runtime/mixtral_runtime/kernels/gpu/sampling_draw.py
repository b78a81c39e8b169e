"""Draws one token of a row: by the rules of `pytorch.choice`, but without sorting.

The tokens that top_k, top_p and min_p keep are the first of the order "most likely first, equals by their ids", and the
token is where a point falls among their probabilities in this order. So it takes no sorted row, but only up to three
searches for the value where a running count (top_k) or a running probability (top_p, then the point) crosses a number.
Each search bisects: a pass over the row gives count and probability of all tokens from a pivot on. When few enough are
between the bounds they are gathered, and the bisection ends in registers. A search ends where the next may start: only
the first passes over the row more than once. Three to five passes of some microseconds are usual, fewer at a low
temperature; thousands of equal logits cost at most eight more than twice the bits of a float32.

Probabilities are float64, as on a CPU, relative to the row's largest. Sums are taken in a fixed order: the same batch
has the same tokens each time. They are rounded in another order than a CPU's: the token is another one only where the
point, a threshold and a boundary between two tokens agree to 15 digits.
"""

import triton
import triton.language as tl

NEAR: tl.constexpr = tl.constexpr(12.0)  # the first pivot, in temperatures below the largest
PASSES_BY_VALUE: tl.constexpr = tl.constexpr(8)  # then every other pivot halves the bits, whatever the values are


@triton.jit
def weigh(
    values_ptr,  # [rows, VOCAB]
    tops_ptr,  # [rows, pieces]
    real_ptr,
    weights_ptr,  # [rows, VOCAB] float64: exp((value - largest) / temperature)
    sums_ptr,  # [rows, 2, pieces] float64: of all weights, and of those that min_p keeps
    numbers_ptr,  # [rows, pieces] int32: how many weights are not 0
    bottoms_ptr,  # [rows, pieces]: the smallest value of these, infinite without any
    VOCAB: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES_BLOCK: tl.constexpr,
):
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, pieces = tl.num_programs(0), tl.num_programs(1)
    temperature = tl.load(real_ptr + row)
    if temperature > 0.0:
        numbers = tl.arange(0, PIECES_BLOCK)
        tops = tl.load(tops_ptr + row * pieces + numbers, mask=numbers < pieces, other=float("-inf"))
        top = tl.max(tops, axis=0)
        tokens = piece * PIECE + tl.arange(0, PIECE)
        inside = tokens < VOCAB
        values = tl.load(values_ptr + row * VOCAB + tokens, mask=inside, other=float("-inf"))
        weights = tl.exp((values.to(tl.float64) - top.to(tl.float64)) / temperature)
        tl.store(weights_ptr + row * VOCAB + tokens, weights, mask=inside)
        least = tl.load(real_ptr + 2 * rows + row)  # min_p, relative to the largest, whose weight is 1
        tl.store(sums_ptr + row * 2 * pieces + piece, tl.sum(weights, axis=0))
        tl.store(sums_ptr + (row * 2 + 1) * pieces + piece, tl.sum(tl.where(weights >= least, weights, 0.0), axis=0))
        tl.store(numbers_ptr + row * pieces + piece, tl.sum((weights > 0.0).to(tl.int32), axis=0))
        bottom = tl.min(tl.where(weights > 0.0, values, float("inf")), axis=0)
        tl.store(bottoms_ptr + row * pieces + piece, bottom)


@triton.jit
def draw(
    token,
    top,
    row,
    rows,
    whole_ptr,
    real_ptr,
    values_ptr,  # [vocab] from here on, of this row
    weights_ptr,
    sums_ptr,
    numbers_ptr,
    bottoms_ptr,
    candidates_ptr,  # [CANDIDATES]
    candidate_weights_ptr,
    vocab,
    PIECES: tl.constexpr,
    PIECES_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """token: the first of the largest, which remains where a row overflowed."""
    top_k = tl.load(whole_ptr + 2 * rows + row)
    temperature, top_p = tl.load(real_ptr + row), tl.load(real_ptr + rows + row)
    uniform = _uniform(tl.load(whole_ptr + rows + row), tl.load(whole_ptr + row))
    pieces = tl.arange(0, PIECES_BLOCK)
    kept = tl.sum(tl.load(sums_ptr + pieces, mask=pieces < PIECES, other=0.0), axis=0)
    by_min_p = tl.sum(tl.load(sums_ptr + PIECES + pieces, mask=pieces < PIECES, other=0.0), axis=0)
    number = tl.sum(tl.load(numbers_ptr + pieces, mask=pieces < PIECES, other=0), axis=0)
    bottom = tl.min(tl.load(bottoms_ptr + pieces, mask=pieces < PIECES, other=float("inf")), axis=0)
    low = _key(tl.minimum(bottom, top))
    rank = kept * 0.0
    for search in range(3):  # for the last token of top_k, the last of top_p, the one that is drawn
        needed = (search == 2) | ((search == 0) & (top_k > 0) & (top_k < number)) | ((search == 1) & (top_p < 1.0))
        if needed:
            target = tl.where(search == 1, top_p * kept, uniform * tl.minimum(kept, by_min_p))
            target = tl.where(search == 0, (top_k - 1).to(tl.float64), target)
            low, number, above, number_above = _crossing(
                target,
                search == 0,
                top,
                temperature,
                low,
                number,
                values_ptr,
                weights_ptr,
                candidates_ptr,
                candidate_weights_ptr,
                vocab,
                BLOCK,
                CANDIDATES,
            )
            weight = tl.exp((_value(low).to(tl.float64) - top.to(tl.float64)) / temperature)
            rank = (target - above) / weight  # among the equals
            by_top_k = above + (top_k - number_above).to(tl.float64) * weight
            by_top_p = tl.maximum(tl.minimum(kept, above + tl.ceil(rank) * weight), 1.0)
            kept = tl.where(search == 0, by_top_k, tl.where(search == 1, by_top_p, kept))
    rank = tl.where(rank == rank, tl.minimum(tl.maximum(rank, 0.0), vocab), 0.0).to(tl.int32)
    return _equal(token, _value(low), rank, values_ptr, vocab, CANDIDATES)


@triton.jit
def _crossing(
    target,
    by_count,
    top,
    temperature,
    low,
    number,
    values_ptr,
    weights_ptr,
    candidates_ptr,
    candidate_weights_ptr,
    vocab,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The largest value for which the weight (or the number) of all tokens from it on exceeds the target, as a key; the
    number of these; and weight and number of those above it. low: where both exceed it; number: of tokens from there.
    """
    high = _key(top) + 1  # exceeds at low, not at high
    above = target * 0.0
    number_above = number * 0
    step = 0
    while (number - number_above > CANDIDATES) & (high > low + 1):
        middle = _value(low) * 0.5 + _value(high - 1) * 0.5
        near = (top.to(tl.float64) - NEAR * temperature).to(tl.float32)
        middle = tl.where((step == 0) & (near > _value(low)), near, middle)
        by_value = (step < PASSES_BY_VALUE) | (step % 2 == 0)
        pivot = tl.where(by_value, _key(middle), _between(low, high))
        pivot = tl.minimum(tl.maximum(pivot, low + 1), high - 1)
        weight, count = _from(_value(pivot), values_ptr, weights_ptr, vocab, BLOCK)
        exceeds = tl.where(by_count, count.to(tl.float64), weight) > target
        low, number = tl.where(exceeds, pivot, low), tl.where(exceeds, count, number)
        high, above = tl.where(exceeds, high, pivot), tl.where(exceeds, above, weight)
        number_above = tl.where(exceeds, number_above, count)
        step += 1
    if high > low + 1:
        _gather(
            _value(low), _value(high), values_ptr, weights_ptr, candidates_ptr, candidate_weights_ptr, vocab, CANDIDATES
        )
        tl.debug_barrier()  # the threads read what others have written
        places = tl.arange(0, CANDIDATES)
        found = places < number - number_above
        keys = _key(tl.load(candidates_ptr + places, mask=found, other=float("-inf")))
        weights = tl.load(candidate_weights_ptr + places, mask=found, other=0.0)
        measures = tl.where(by_count, 1.0, weights)
        measure_above = tl.where(by_count, number_above.to(tl.float64), above)
        while high > low + 1:
            pivot = _between(low, high)
            exceeds = measure_above + tl.sum(tl.where(keys >= pivot, measures, 0.0), axis=0) > target
            low, high = tl.where(exceeds, pivot, low), tl.where(exceeds, high, pivot)
        above += tl.sum(tl.where(keys >= high, weights, 0.0), axis=0)
        number = number_above + tl.sum((keys >= low).to(tl.int32), axis=0)
        number_above += tl.sum((keys >= high).to(tl.int32), axis=0)
    return low, number, above, number_above


@triton.jit
def _from(pivot, values_ptr, weights_ptr, vocab, BLOCK: tl.constexpr):
    """Weight and number of the tokens from the pivot on."""
    weight = tl.zeros([BLOCK], tl.float64)
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        among = tl.load(values_ptr + tokens, mask=tokens < vocab, other=float("-inf")) >= pivot
        weight += tl.where(among, tl.load(weights_ptr + tokens, mask=tokens < vocab, other=0.0), 0.0)
        number += among.to(tl.int32)
    return tl.sum(weight, axis=0), tl.sum(number, axis=0)


@triton.jit
def _gather(low, high, values_ptr, weights_ptr, candidates_ptr, candidate_weights_ptr, vocab, BLOCK: tl.constexpr):
    """Moves those from low on and below high to the front of the candidates."""
    filled = 0
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        values = tl.load(values_ptr + tokens, mask=tokens < vocab, other=float("-inf"))
        weights = tl.load(weights_ptr + tokens, mask=tokens < vocab, other=0.0)
        among = (values >= low) & (values < high)
        places = filled + tl.cumsum(among.to(tl.int32), axis=0) - 1
        tl.store(candidates_ptr + places, values, mask=among)
        tl.store(candidate_weights_ptr + places, weights, mask=among)
        filled += tl.sum(among.to(tl.int32), axis=0)


@triton.jit
def _equal(token, value, rank, values_ptr, vocab, BLOCK: tl.constexpr):
    """Of the tokens with this value, in order of their ids, the one of this rank, or the last; `token` without any."""
    passed = 0
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        equal = (tl.load(values_ptr + tokens, mask=tokens < vocab, other=float("-inf")) == value).to(tl.int32)
        places = passed + tl.cumsum(equal, axis=0) - 1
        last = tl.max(tl.where((equal != 0) & (places <= rank), tokens, -1), axis=0)
        token = tl.where(last >= 0, last, token)
        passed += tl.sum(equal, axis=0)
    return token


@triton.jit
def _key(value):
    """float32 -> int32 in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _value(key):
    return tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _between(low, high):
    """Their mean, rounded down, without overflow."""
    return (low >> 1) + (high >> 1) + (low & high & 1)


@triton.jit
def _uniform(seed, step):
    """As `pytorch.random_stream.uniforms`: SplitMix64."""
    z = seed.to(tl.uint64, bitcast=True) + (step + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)
