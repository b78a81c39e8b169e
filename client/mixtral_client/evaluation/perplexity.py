"""Perplexity: how well the served model predicts a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixtral_client.evaluation.scorer import Progress, Scorer, Scores
from mixtral_client.evaluation.texts import cut_into_windows


@dataclass(frozen=True, slots=True)
class Perplexity:
    """perplexity: exp of the mean negative log likelihood of the predicted tokens, of which there are `tokens`.
    context, stride: tokens, see `texts.cut_into_windows`."""

    perplexity: float
    texts: int
    tokens: int
    context: int
    stride: int


async def evaluate_perplexity(
    scorer: Scorer, texts: Sequence[str], *, context: int, stride: int | None = None, progress: Progress | None = None
) -> tuple[Perplexity | None, Scores]:
    """Of the windows that were answered; None without any. Raises InvalidArgument for a stride above the context and
    for texts without a token to predict, and what the client raises while it tokenises."""
    windows = cut_into_windows(await scorer.tokenize(texts), context, stride)
    scores = await scorer.score(windows, progress)
    found = [
        (window, value) for window, value in zip(windows, scores.log_likelihoods, strict=True) if value is not None
    ]
    if not found:
        return None, scores
    tokens = sum(window.predicted for window, _ in found)
    mean = -math.fsum(value for _, value in found) / tokens
    return Perplexity(math.exp(mean), len(texts), tokens, context, context if stride is None else stride), scores
