"""Texts as the windows of tokens that a model reads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import HiddenStates, Samples, logits_chunks
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tokenizer import encode_prompt


@dataclass(frozen=True, slots=True)
class Windows:
    """token_ids: of each window. first: position in each window of the first token that is predicted, at least 1."""

    token_ids: list[list[int]]
    first: list[int]

    @property
    def predicted(self) -> int:
        """Tokens that are predicted, each counted once."""
        return sum(len(ids) - first for ids, first in zip(self.token_ids, self.first, strict=True))

    @property
    def samples(self) -> Samples:
        return Samples(self.token_ids)


def cut_into_windows(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, context: int, stride: int | None = None
) -> Windows:
    """Each text by itself, with BOS once in front. A window has `context` tokens at most and begins `stride` after the
    one before (None: `context`); it predicts what no window before it has predicted.

    Without overlap the first token of a window is never predicted; with a smaller stride every token but the text's
    first is. Raises InvalidArgument when stride exceeds context, or when there is no token to predict.
    """
    stride = context if stride is None else stride
    if stride > context:
        raise InvalidArgument(f"the stride is {stride}, it must be at most the context, which is {context}")
    windows = Windows([], [])
    for text in texts:
        ids = encode_prompt(tokenizer, text)
        done = 0  # tokens of the text that lie in a window already
        for start in range(0, len(ids), stride):
            window = ids[start : start + context]
            first = max(done - start, 1)
            if len(window) > first:
                windows.token_ids.append(window)
                windows.first.append(first)
            done = start + len(window)
            if done == len(ids):
                break
    if not windows.token_ids:
        raise InvalidArgument("the text has no token to predict, it needs at least two")
    return windows


def predictions(source: LayerSource, states: HiddenStates, windows: Windows) -> Iterator[tuple[Tensor, list[int]]]:
    """From the states after the last layer: (log probabilities [tokens, vocab] float64, the tokens that came)."""
    for sample, start, logits in logits_chunks(source, states):
        ids = windows.token_ids[sample]
        begin, end = max(windows.first[sample] - 1, start), min(start + len(logits), len(ids) - 1)
        if begin < end:
            # float64, because a good quantisation has a KL near the rounding of float32.
            log_probs = logits[begin - start : end - start].double().log_softmax(-1)
            yield log_probs, ids[begin + 1 : end + 1]
