"""From logits to one token per row: temperature, top-k, top-p and min-p, without sorting the vocabulary where its best
tokens decide.

Every number that a row meets is computed within the row and at a width that the row alone decides, so its token is the
same in every batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixtral_runtime.engine import MAX_TOP_K

FEW, MANY = 128, MAX_TOP_K  # candidates
CACHED_ROWS = 8  # at once on a CPU: 2 MB of probabilities of a vocabulary of 32,000


@dataclass(frozen=True, slots=True)
class Filters:
    """[rows, 1] each: temperature (above 0), top_p and min_p float64; top_k int64, 0 for all tokens."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Filters":
        return Filters(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows])


@dataclass(frozen=True, slots=True)
class Choice:
    """report: [2 or 3, rows] int64 on the device: the tokens, whether a row's logits were finite (else its token means
    nothing), and, by the GPU kernels, whether the token ends the row: as end token or stop sequence of one."""

    report: Tensor

    @property
    def tokens(self) -> Tensor:
        return self.report[0]


def best(logits: Tensor) -> Tensor:
    """[rows, vocab] without NaN -> [rows] int64, the first of the largest."""
    if logits.is_cpu:  # PyTorch's own is not vectorised there, and ten times slower
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


# Both ways of drawing apply temperature, then top-k, then top-p over what is left renormalised, then min-p: the order
# of TensorRT-LLM. The token is where `uniform`, [rows, 1] float64 in [0, 1), falls among those kept, ordered from the
# most likely, equals by their ids. logits: [rows, vocab] float32, finite. The result: [rows] int64.


def draw_bounded(logits: Tensor, filters: Filters, uniform: Tensor, width: int) -> Tensor:
    """Every row has a top_k, of at most `width`."""
    values, token_ids = logits.topk(min(width, logits.shape[1]))
    rank = torch.arange(values.shape[1], device=logits.device)
    scaled = (values.double() / filters.temperature).masked_fill(rank >= filters.top_k, float("-inf"))
    chosen, _ = _choose(scaled.softmax(dim=-1), filters, uniform, everything=True)
    return _token_at(logits, values, token_ids, chosen)


def draw_unbounded(logits: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    """No row has a top_k. All are sorted where the best FEW tokens of a row do not decide."""
    size = CACHED_ROWS if logits.is_cpu else len(logits)
    parts = []
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        parts.append(_draw_unbounded(logits[rows], filters[rows], uniform[rows]))
    return torch.cat(parts)


def _draw_unbounded(logits: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    if logits.shape[1] <= FEW:
        return _draw_sorted(logits, filters, uniform)
    probs = (logits.double() / filters.temperature).softmax(dim=-1)  # [rows, vocab]
    values, token_ids = logits.topk(FEW)
    chosen, decided = _choose(probs.gather(1, token_ids), filters, uniform)
    tokens = _token_at(logits, values, token_ids, chosen)
    rest = (~decided).nonzero()[:, 0]
    if len(rest):
        tokens[rest] = _draw_sorted(logits[rest], filters[rest], uniform[rest])
    return tokens


def _draw_sorted(logits: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    values = _sorted(logits)
    chosen, _ = _choose((values.double() / filters.temperature).softmax(dim=-1), filters, uniform, everything=True)
    value = values.gather(1, chosen)
    return _equal_at(logits, value, chosen - (values > value).sum(dim=-1, keepdim=True))


def _choose(probs: Tensor, filters: Filters, uniform: Tensor, *, everything: bool = False) -> tuple[Tensor, Tensor]:
    """probs: [rows, width] float64, best first -> the chosen rank [rows, 1], and which rows it is final for [rows].

    Kept tokens are the first ones. When the last candidate is kept, more may follow: then only a row that keeps all
    tokens, of total probability 1, knows where the draw falls.
    """
    cumulative = probs.cumsum(dim=-1)
    # Probability 0 is dropped also where rounding leaves the sum before a banned token below top_p 1.
    kept = (cumulative - probs < filters.top_p) & (probs >= filters.min_p * probs[:, :1]) & (probs > 0)
    kept[:, 0] = True
    count = kept.sum(dim=-1, keepdim=True)
    complete = torch.ones_like(count, dtype=torch.bool) if everything else count < probs.shape[1]
    total = torch.where(complete, cumulative.gather(1, count - 1), 1.0)
    point = uniform * total
    chosen = torch.searchsorted(cumulative, point, right=True)
    final = complete | ((filters.top_p >= 1) & (filters.min_p == 0) & (point < cumulative[:, -1:]))
    # Rounding may carry the point onto the total; the last kept token is the one it belongs to.
    return torch.minimum(chosen, count - 1), final[:, 0]


def _token_at(logits: Tensor, values: Tensor, token_ids: Tensor, rank: Tensor) -> Tensor:
    """The token of a rank ([rows, 1]) among all tokens, best first, equals by their ids -> [rows] int64. values and
    token_ids: [rows, width], the best logits in order, but equals in any, and only some of those that equal the last.
    """
    value = values.gather(1, rank)
    number = rank - (values > value).sum(dim=-1, keepdim=True)
    equals = token_ids.masked_fill(values != value, logits.shape[1]).sort(dim=-1).values
    tokens = equals.gather(1, number)[:, 0]
    last = (value == values[:, -1:])[:, 0].nonzero()[:, 0]
    if len(last):
        tokens[last] = _equal_at(logits[last], value[last], number[last])
    return tokens


def _equal_at(logits: Tensor, value: Tensor, number: Tensor) -> Tensor:
    """Of the tokens with this value, in order of their ids, the one of this number. value, number: [rows, 1]."""
    places = (logits == value).nonzero()  # [at least one per row, 2]: row and token id, in order
    first = torch.searchsorted(places[:, 0].contiguous(), torch.arange(len(logits), device=logits.device))
    return places[first + number[:, 0], 1]


def _sorted(logits: Tensor) -> Tensor:
    """Each row in descending order."""
    if logits.is_cpu:  # NumPy sorts with vector instructions, ten times faster
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=-1))
    return logits.sort(dim=-1, descending=True).values
