"""One step of the model: the scheduled tokens in, sampled tokens and log probabilities out.

Until its end nothing is changed but the cache, at slots that a repetition writes alike: a step that raised can be tried
again.
"""

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtral_runtime.engine import TopLogProbs
from mixtral_runtime.errors import Internal
from mixtral_runtime.pytorch import log_probs
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.scheduler import Work

LOGITS_ROWS = 64  # of a prompt at once: the logits of a whole prompt could outgrow the model

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepResult:
    """token: the sampled one, None when the prompt goes on in the next step or there was an error."""

    work: Work
    token: int | None = None
    log_prob: float | None = None
    top_log_probs: TopLogProbs | None = None
    prompt_log_probs: list[float] = field(default_factory=list)
    error: Internal | None = None


def run_step(model: MixtralModel, cache: KvCache, sampler: Sampler, work: list[Work]) -> list[StepResult]:
    """One result per work, in order. When the step raises, each sequence is tried alone, which gives it the same
    tokens, so that only those fail that fail alone; the traceback is logged and kept from the user."""
    try:
        return _run(model, cache, sampler, work)
    except Exception:
        logger.exception("a step of %d sequences failed", len(work))
        sampler.forget()
    if len(work) == 1:
        return [StepResult(work[0], error=Internal("the engine failed to compute this request"))]
    return [result for one in work for result in run_step(model, cache, sampler, [one])]


@torch.inference_mode()
def _run(model: MixtralModel, cache: KvCache, sampler: Sampler, work: list[Work]) -> list[StepResult]:
    builder = BatchBuilder()
    for one in work:
        sequence = one.sequence
        builder.add(
            sequence.tokens[sequence.computed : sequence.computed + one.length], sequence.computed, sequence.block_ids
        )
    batch = builder.build(model.device)
    hidden = model.forward(batch, cache)  # [tokens, hidden]
    results = [StepResult(one) for one in work]
    for i, one in enumerate(work):
        if one.sequence.request.return_prompt_log_probs:
            results[i].prompt_log_probs = _prompt_log_probs(model, hidden[batch.spans[i].rows], one)
    complete = [i for i, one in enumerate(work) if one.completes]
    if complete:
        _sample(sampler, model.logits(hidden[batch.last_rows[complete]]), [results[i] for i in complete])
    return results


def _sample(sampler: Sampler, logits: Tensor, results: list[StepResult]) -> None:
    """logits: [rows, vocab] float32, a row per result. Overflow is one request's misfortune, not the batch's."""
    finite = ((logits.amin(dim=-1) > -math.inf) & (logits.amax(dim=-1) < math.inf)).tolist()  # NaN is neither
    if not all(finite):
        logits = logits.nan_to_num()
    tokens = sampler.sample(logits, [result.work.sequence for result in results])
    wanted = [row for row, result in enumerate(results) if result.work.sequence.request.return_log_probs]
    if wanted:
        _log_probs(logits[wanted], tokens[wanted], [results[row] for row in wanted])
    for result, token, ok in zip(results, tokens.tolist(), finite, strict=True):
        if ok:
            result.token = token
        else:
            result.error = Internal("the model's logits overflowed for this request")
    sampler.append(tokens)


def _log_probs(logits: Tensor, tokens: Tensor, results: list[StepResult]) -> None:
    normalised = logits.log_softmax(dim=-1)
    counts = [result.work.sequence.request.top_log_probs for result in results]
    for result, log_prob in zip(results, log_probs.of_tokens(normalised, tokens), strict=True):
        result.log_prob = log_prob
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        tops = log_probs.most_likely(normalised[rows], [counts[row] for row in rows])
        for row, top in zip(rows, tops, strict=True):
            results[row].top_log_probs = top


def _prompt_log_probs(model: MixtralModel, hidden: Tensor, work: Work) -> list[float]:
    """hidden: [length, hidden], whose row i predicts the token after it. Only prompt tokens are looked up, and after a
    preemption only those that were not before."""
    sequence = work.sequence
    start = max(sequence.computed, len(sequence.prompt_log_probs))
    hidden = hidden[start - sequence.computed :]
    targets = sequence.request.prompt_ids[start + 1 : sequence.computed + 1 + work.length]
    found: list[float] = []
    for start in range(0, len(targets), LOGITS_ROWS):
        chunk = torch.tensor(targets[start : start + LOGITS_ROWS], device=model.device)
        found += log_probs.of_tokens(model.logits(hidden[start : start + len(chunk)]).log_softmax(dim=-1), chunk)
    return found
