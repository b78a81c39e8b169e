"""Perplexity: how well a model predicts a text."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import run_layers
from mixtral_build.windows import cut_into_windows, predictions


@dataclass(frozen=True, slots=True)
class Perplexity:
    """perplexity: exp of the mean negative log likelihood of the predicted tokens, of which there are `tokens`.
    context, stride: tokens, see `windows.cut_into_windows`."""

    perplexity: float
    texts: int
    tokens: int
    context: int
    stride: int


def evaluate_perplexity(
    source: LayerSource,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    *,
    context: int,
    stride: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Perplexity:
    """A context beyond the model's positions is cut to them. progress: called with the layers done and their total.

    Raises InvalidArgument for a stride above the context and for texts without a token to predict.
    """
    context = min(context, source.config.max_position_embeddings)
    windows = cut_into_windows(texts, tokenizer, context, stride)
    states = run_layers(source, windows.samples, progress=progress)
    negative_log_likelihood = 0.0
    for log_probs, targets in predictions(source, states, windows):
        index = torch.tensor(targets, device=log_probs.device)[:, None]
        negative_log_likelihood -= float(log_probs.gather(1, index).sum())
    mean = negative_log_likelihood / windows.predicted
    return Perplexity(math.exp(mean), len(texts), windows.predicted, context, context if stride is None else stride)
