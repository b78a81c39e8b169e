"""Natural logarithms of the model's own distribution: of given tokens, and the most likely ones."""

import torch
from torch import Tensor

from mixtral_runtime.engine import TopLogProbs


def of_tokens(log_probs: Tensor, token_ids: Tensor) -> list[float]:
    """log_probs: [rows, vocab] float32, token_ids: [rows] int64."""
    chosen: list[float] = log_probs.gather(1, token_ids[:, None])[:, 0].tolist()
    return chosen


def most_likely(log_probs: Tensor, counts: list[int]) -> list[TopLogProbs]:
    """log_probs: [rows, vocab] float32 without NaN. counts: how many of each row, one at least. Best first, equals by
    their ids."""
    count = min(max(counts), log_probs.shape[1])
    least = log_probs.topk(count).values[:, -1:]
    places = (log_probs >= least).nonzero()  # [count a row and what equals the last, 2]: row and token id, in order
    rows, token_ids = places[:, 0].contiguous(), places[:, 1]
    values = log_probs[rows, token_ids]
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, in it by value, in these by token id
    starts = torch.searchsorted(rows, torch.arange(len(counts), device=log_probs.device))
    first = order[starts[:, None] + torch.arange(count, device=log_probs.device)]  # [rows, count]
    found = zip(token_ids[first].tolist(), values[first].tolist(), counts, strict=True)
    return [TopLogProbs(ids[:wanted], best[:wanted]) for ids, best, wanted in found]
