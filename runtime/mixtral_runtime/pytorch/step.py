"""One step of the model: the scheduled tokens in, sampled tokens and log probabilities out.

A step is launched, and collected when the device is done with it. Between the two the next can be launched: it takes
the tokens that are not known here yet from the device. Until a step is collected nothing is changed but the cache, at
slots that a repetition writes alike, and the scheduler's note of what was launched: one that raised can be tried again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtral_runtime.engine import EngineLimits, TopLogProbs
from mixtral_runtime.errors import Internal
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch import log_probs
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder, HostBatch, move
from mixtral_runtime.pytorch.decode_graphs import DecodeGraphs
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.sampler import AnySampler
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


@dataclass(frozen=True, slots=True)
class Step:
    """A step on its way. sampled: the results that get a token, row by row. tokens: [rows] int64 on the device. report:
    [2, rows] int64, the tokens and whether their logits were finite, on the host as soon as `done` returns. normalised:
    [wanted, vocab] float32, log probabilities of those rows that want some."""

    results: list[StepResult]
    sampled: list[StepResult]
    tokens: Tensor
    report: Tensor
    normalised: Tensor | None
    done: Callable[[], object]

    @property
    def work(self) -> list[Work]:
        return [result.work for result in self.results]


class StepRunner:
    def __init__(
        self, model: MixtralModel, cache: KvCache, sampler: AnySampler, graphs: DecodeGraphs | None = None
    ) -> None:
        """graphs: of the decode steps, where they are recorded."""
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._graphs = graphs

    def run(self, work: list[Work]) -> list[StepResult]:
        """One result per work, in order, of a step whose tokens are all known. When it raises, each sequence is tried
        alone, which gives it the same tokens, so that only those fail that fail alone; the traceback is logged and kept
        from the user."""
        try:
            return self.collect(self.launch(work))
        except Exception:
            logger.exception("a step of %d sequences failed", len(work))
            self._sampler.forget()
        if len(work) == 1:
            return [StepResult(work[0], error=Internal("the engine failed to compute this request"))]
        return [result for one in work for result in self.run([one])]

    def forget(self) -> None:
        """After a step that was launched in vain."""
        self._sampler.forget()

    @torch.inference_mode()
    def warm_up(self, limits: EngineLimits) -> None:
        """Runs steps of every size class, of decoding and prefilling sequences, so that no request waits for kernels to
        be compiled. For an engine without sequences: all is written into block 0."""
        sizes = {size for i in range(1, 64) for size in (2**i, 3 * 2 ** (i - 1)) if size < limits.max_num_tokens}
        for tokens in (*sorted(sizes), limits.max_num_tokens):
            builder = BatchBuilder()
            builder.add([0], 1, [0])
            while (left := tokens - builder.tokens) > 0:
                length = min(left, limits.max_input_len)
                builder.add([0] * length, 0, [0] * blocks_for(length))
            batch = builder.build(self._model.device)
            self._model.logits(self._model.forward(batch, self._cache)[batch.last_rows])
        self._sampler.warm_up()

    @torch.inference_mode()
    def launch(self, work: list[Work], before: Step | None = None) -> Step:
        """before: the step that has tokens of these sequences which are not known here."""
        host = _batch(work, before)
        results = [StepResult(one) for one in work]
        complete = [row for row, one in enumerate(work) if one.completes]
        # One token each, and all of them sampled after: a prompt's single token may be neither.
        decodes = len(complete) == len(work) == host.tokens.shape[1]
        if self._graphs is not None and decodes:
            logits = self._graphs.run(host, None if before is None else before.tokens)
        else:
            batch = host.to(self._model.device, None if before is None else before.tokens)
            hidden = self._model.forward(batch, self._cache)  # [tokens, hidden]
            for result, span in _with_prompt_log_probs(results, batch):
                result.prompt_log_probs = _prompt_log_probs(self._model, hidden[span], result.work)
            if not decodes:
                hidden = hidden[move(host.last_rows[complete], self._model.device)]
            logits = self._model.logits(hidden)
        return self._sample(logits, results, [results[row] for row in complete])

    @torch.inference_mode()
    def collect(self, step: Step) -> list[StepResult]:
        """Waits for the step. Overflow is one request's misfortune, not the batch's."""
        step.done()
        tokens, finite = step.report.tolist()
        for result, token, ok in zip(step.sampled, tokens, finite, strict=True):
            if ok:
                result.token = token
            else:
                result.error = Internal("the model's logits overflowed for this request")
        if step.normalised is not None:
            _log_probs(step.normalised, [result for result in step.sampled if _wants_log_probs(result)], step)
        return step.results

    def _sample(self, logits: Tensor, results: list[StepResult], sampled: list[StepResult]) -> Step:
        """logits: [rows, vocab] float32, a row per result that is sampled."""
        if not sampled:
            nothing = torch.zeros(2, 0, dtype=torch.int64)
            return Step(results, sampled, nothing[0].to(logits.device), nothing, None, _device_done(logits.device))
        choice = self._sampler.choose(logits, [result.work.sequence for result in sampled])
        wanted = [row for row, result in enumerate(sampled) if _wants_log_probs(result)]
        normalised = logits[wanted].nan_to_num().log_softmax(dim=-1) if wanted else None
        self._sampler.append(choice.tokens)
        report = choice.report[:2].to("cpu", non_blocking=True)
        return Step(results, sampled, choice.tokens, report, normalised, _device_done(logits.device))


def _device_done(device: torch.device) -> Callable[[], object]:
    """What waits for all that was launched so far."""
    if device.type != "cuda":
        return lambda: None
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def _batch(work: list[Work], before: Step | None) -> HostBatch:
    rows = {} if before is None else {result.work.sequence.id: row for row, result in enumerate(before.sampled)}
    builder = BatchBuilder()
    for one in work:
        sequence = one.sequence
        if one.start == len(sequence.tokens):
            builder.add_sampled(rows[sequence.id], one.start, sequence.block_ids)
        else:
            builder.add(sequence.tokens[one.start : one.end], one.start, sequence.block_ids)
    return builder.finish()


def _wants_log_probs(result: StepResult) -> bool:
    return result.work.sequence.request.return_log_probs


def _log_probs(normalised: Tensor, results: list[StepResult], step: Step) -> None:
    """normalised: [wanted, vocab] float32, a row per result."""
    rows = [row for row, result in enumerate(step.sampled) if _wants_log_probs(result)]
    counts = [result.work.sequence.request.top_log_probs for result in results]
    for result, log_prob in zip(results, log_probs.of_tokens(normalised, step.tokens[rows]), strict=True):
        result.log_prob = log_prob
    tops = [row for row, count in enumerate(counts) if count]
    if tops:
        found = log_probs.most_likely(normalised[tops], [counts[row] for row in tops])
        for row, top in zip(tops, found, strict=True):
            results[row].top_log_probs = top


def _with_prompt_log_probs(results: list[StepResult], batch: Batch) -> list[tuple[StepResult, slice]]:
    """Those that want them, with their rows."""
    wanting = [row for row, result in enumerate(results) if result.work.sequence.request.return_prompt_log_probs]
    return [(results[row], batch.spans[row].rows) for row in wanting]


def _prompt_log_probs(model: MixtralModel, hidden: Tensor, work: Work) -> list[float]:
    """hidden: [length, hidden], whose row i predicts the token after it. Only prompt tokens are looked up, and after a
    preemption only those that were not before."""
    sequence = work.sequence
    start = max(work.start, len(sequence.prompt_log_probs))
    hidden = hidden[start - work.start :]
    targets = sequence.request.prompt_ids[start + 1 : work.end + 1]
    found: list[float] = []
    for start in range(0, len(targets), LOGITS_ROWS):
        chunk = torch.tensor(targets[start : start + LOGITS_ROWS], device=model.device)
        found += log_probs.of_tokens(model.logits(hidden[start : start + len(chunk)]).log_softmax(dim=-1), chunk)
    return found
