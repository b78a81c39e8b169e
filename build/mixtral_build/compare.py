"""What quantising changed: two checkpoints on the same text, in float32, by the PyTorch runtime's own model."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixtral_runtime.checkpoint import TOKENIZER_NAME, Checkpoint
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.kv_cache import KvCache, blocks_for
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tokenizer import encode_prompt, load_tokenizer

WINDOW = 1024  # tokens of context; longer texts are cut into windows
TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Comparison:
    """tokens: predicted tokens that the figures are means over. mean_kl: of A relative to B, KL(A || B), in nats per
    token. top1_agreement: share of tokens for which both find the same one most likely."""

    a: str
    b: str
    texts: int
    tokens: int
    perplexity_a: float
    perplexity_b: float
    mean_kl: float
    top1_agreement: float


def compare_checkpoints(
    a_dir: Path,
    b_dir: Path,
    texts: list[str],
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Both directories are checkpoints or engines of the PyTorch runtime. A's tokenizer reads the texts.

    Both models are in memory at once. progress: called with the windows done and their total.
    Raises MixtralError when a directory cannot be loaded, the vocabularies differ, or there is nothing to predict.
    """
    a, b = _load(a_dir), _load(b_dir)
    if a.config.vocab_size != b.config.vocab_size:
        raise InvalidArgument(f"{b_dir} has a vocabulary of {b.config.vocab_size}, {a_dir} has {a.config.vocab_size}")
    longest = min(WINDOW, a.config.max_position_embeddings, b.config.max_position_embeddings)
    windows = list(_windows(_tokenize(a_dir, texts), longest))
    tokens = sum(len(window) - 1 for window in windows)
    if tokens == 0:
        raise InvalidArgument("the text has no token to predict, it needs at least two")
    totals = torch.zeros(4, dtype=torch.float64)  # negative log likelihood of A and of B, KL, agreements
    done = 0
    for group in _groups(windows):
        totals += _group_totals(a, b, group)
        done += len(group)
        if progress is not None:
            progress(done, len(windows))
    nll_a, nll_b, kl, agreements = (totals / tokens).tolist()
    return Comparison(str(a_dir), str(b_dir), len(texts), tokens, math.exp(nll_a), math.exp(nll_b), kl, agreements)


def read_texts(path: Path) -> list[str]:
    """A `.jsonl` file has one object with a `text` per line; any other file is one text."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text") from error
    if path.suffix != ".jsonl":
        return [content]
    texts = []
    # Not splitlines, which also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        try:
            texts.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f'{path} line {number} is not a JSON object with a "text"') from error
    return texts


def _load(directory: Path) -> MixtralModel:
    checkpoint = Checkpoint.open(directory)
    checkpoint.validate()
    return MixtralModel.load(checkpoint, "cpu", torch.float32)


def _tokenize(directory: Path, texts: list[str]) -> Iterable[list[int]]:
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME)
    return (encode_prompt(tokenizer, text) for text in texts)


def _windows(sequences: Iterable[list[int]], longest: int) -> Iterator[list[int]]:
    for ids in sequences:
        for start in range(0, len(ids), longest):
            if len(window := ids[start : start + longest]) > 1:
                yield window


def _groups(windows: Iterable[list[int]]) -> Iterator[list[list[int]]]:
    """Windows that are computed together, TOKENS_AT_ONCE at most unless one alone is longer."""
    group: list[list[int]] = []
    for window in windows:
        if group and sum(map(len, group)) + len(window) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _group_totals(a: MixtralModel, b: MixtralModel, group: list[list[int]]) -> Tensor:
    """What the figures are made of, summed over the group."""
    targets = torch.tensor([token for window in group for token in window[1:]])
    log_a, log_b = _log_probs(a, group), _log_probs(b, group)  # [tokens, vocab]
    kl = (log_a.exp() * (log_a - log_b)).sum()
    agreements = (log_a.argmax(-1) == log_b.argmax(-1)).sum()
    nll_a, nll_b = (-log.gather(1, targets[:, None]).sum() for log in (log_a, log_b))
    return torch.stack([nll_a, nll_b, kl, agreements.double()])


@torch.inference_mode()
def _log_probs(model: MixtralModel, group: list[list[int]]) -> Tensor:
    """Of the next token after each but the last of every window, [tokens, vocab] in float64, because a good
    quantisation has a KL near the rounding of float32."""
    builder = BatchBuilder()
    predicting: list[int] = []
    used, tokens = 0, 0  # blocks, rows
    for window in group:
        builder.add(window, 0, list(range(used, used + blocks_for(len(window)))))
        predicting += range(tokens, tokens + len(window) - 1)
        used, tokens = used + blocks_for(len(window)), tokens + len(window)
    cache = KvCache(model.config, used, model.device, model.dtype)
    hidden = model.forward(builder.build(model.device), cache)  # [tokens of all windows, hidden]
    return model.logits(hidden[predicting]).double().log_softmax(-1)
