"""An engine without a model: known tokens on a clock, for N streams, behind the seam of `mixtral_runtime.engine`.

It measures the path around an engine and drives tests of faults. What it says is in `synthetic_tokens`, how it behaves
in `synthetic_settings`, when it spoke in `synthetic_emissions`. It is served like any engine: by a manifest whose
runtime is `synthetic_engine:open`, with this folder in MIXTRAL_PLUGIN_PATH.
"""

import heapq
import logging
import os
import time
from bisect import insort
from itertools import count
from pathlib import Path
from threading import Condition, Lock, Thread

from synthetic_clock import StepClock
from synthetic_emissions import EmissionWriter
from synthetic_request import SyntheticRequest
from synthetic_settings import SyntheticSettings

from mixtral_runtime.engine import EngineLimits, EngineStats, FinishReason, Output, Request, validate_request
from mixtral_runtime.errors import Internal, MixtralError, Unavailable
from mixtral_runtime.manifest import Manifest

STOPPED = "the engine has stopped after a failure"
TOKENS_PER_BLOCK = 64

logger = logging.getLogger(__name__)


def open(engine_dir: Path, manifest: Manifest) -> "SyntheticEngine":
    """The factory that a manifest names. Raises InvalidArgument when the settings are not sound."""
    settings = SyntheticSettings.load(engine_dir)
    emissions = None if settings.emissions is None else EmissionWriter(engine_dir / settings.emissions)
    return SyntheticEngine(manifest.limits, manifest.model.vocab_size, settings, emissions)


class SyntheticEngine:
    """`mixtral_runtime.engine.Engine`. Steps are a real engine's: admission by priority and arrival, prefill in chunks
    of what `max_num_tokens` leaves, one token for every running request, and a step thread that waits for nobody."""

    def __init__(
        self,
        limits: EngineLimits,
        vocab_size: int,
        settings: SyntheticSettings,
        emissions: EmissionWriter | None = None,
    ) -> None:
        self._limits, self._vocab_size, self._settings = limits, vocab_size, settings
        self._emissions = emissions
        self._failing = {failure.at: failure.tokens for failure in settings.failures if failure.what == "request"}
        self._clock = StepClock(settings)
        self._waiting: list[SyntheticRequest] = []
        self._running: list[SyntheticRequest] = []
        self._live: dict[int, SyntheticRequest] = {}
        self._news: dict[int, SyntheticRequest] = {}  # have output that was not polled
        self._cancelled: set[int] = set()
        self._deadlines: list[tuple[float, int]] = []  # a heap
        self._ids = count(1)
        self._closing = self._stopped = self._failed = False
        self._steps = self._prompt_tokens = self._output_tokens = 0
        self._finished = {reason.value: 0 for reason in FinishReason}
        self._lock = Lock()
        self._wake = Condition(self._lock)  # the step thread waits here for work
        self._output = Condition(self._lock)  # poll waits here for news, close for the last request
        self._thread = Thread(target=self._run, name="engine-step", daemon=True)
        self._thread.start()

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def submit(self, request: Request) -> int:
        validate_request(request, self._limits, self._vocab_size)
        entry = SyntheticRequest(request)  # outside the lock: it makes all the tokens
        with self._lock:
            if self._failed:
                raise Internal(STOPPED)
            if self._closing:
                raise Unavailable("the engine is shutting down")
            if len(self._waiting) >= self._limits.max_queue_size:
                raise Unavailable(
                    f"the queue is full: {len(self._waiting)} requests wait, the limit is {self._limits.max_queue_size}"
                )
            entry.id = next(self._ids)
            entry.fails_after = self._failing.get(entry.id)
            insort(self._waiting, entry, key=lambda e: (-e.request.priority, e.id))
            self._live[entry.id] = entry
            if request.timeout_s is not None:
                heapq.heappush(self._deadlines, (time.monotonic() + request.timeout_s, entry.id))
            self._wake.notify()
            return entry.id

    def cancel(self, request_id: int) -> None:
        with self._lock:
            if request_id in self._live:
                self._cancelled.add(request_id)
                self._wake.notify()

    def poll(self, timeout_s: float) -> list[Output]:
        with self._lock:
            self._output.wait_for(lambda: self._news, timeout_s)
            taken = [(entry, entry.take()) for entry in self._news.values()]
            self._news.clear()
        return [entry.output(piece) for entry, piece in taken]  # outside the lock, so that no step waits for it

    def stats(self) -> EngineStats:
        with self._lock:
            held = sum(-(-entry.cached_tokens // TOKENS_PER_BLOCK) for entry in self._running)
            total = self._limits.max_batch_size * -(-self._limits.max_seq_len // TOKENS_PER_BLOCK)
            return EngineStats(
                active=len(self._running),
                queued=len(self._waiting),
                max_batch_size=self._limits.max_batch_size,
                kv_blocks_total=total,
                kv_blocks_free=total - held,
                tokens_per_block=TOKENS_PER_BLOCK,
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                output_tokens=self._output_tokens,
                finished=dict(self._finished),
            )

    def close(self, drain_s: float = 0.0) -> None:
        with self._lock:
            self._closing = True
            self._output.wait_for(lambda: not self._live, drain_s)
            self._cancelled.update(self._live)
            self._stopped = True
            self._wake.notify()
        self._clock.interrupt()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (prefill := self._begin_step()) is not None:
                self._clock.wait_for_end(self._steps + 1, *prefill)
                error = self._fault(self._steps + 1)
                with self._lock:
                    self._end_step(error)
        except Exception:
            logger.exception("the engine stopped")
            with self._lock:
                self._failed = True
                self._running, self._waiting = [], []
                for entry in list(self._live.values()):
                    self._finish(entry, FinishReason.ERROR, Internal(STOPPED))

    def _begin_step(self) -> tuple[int, int] | None:
        """Waits for work. The tokens and requests of this step's prefill; None when the engine is closed and empty."""
        with self._lock:
            while True:
                self._end_cancelled_and_late()
                if self._running or self._waiting:
                    return self._prefill()
                if self._stopped:
                    return None
                self._wake.wait()
                self._clock.restart()

    def _prefill(self) -> tuple[int, int]:
        budget = self._limits.max_num_tokens - sum(entry.prefill_left == 0 for entry in self._running)
        tokens = requests = 0
        prefilling = [entry for entry in self._running if entry.prefill_left]
        while budget > 0 and (entry := prefilling.pop(0) if prefilling else self._admit()):
            length = min(entry.prefill_left, budget)
            requests += entry.prefill_left == len(entry.request.prompt_ids)
            entry.prefill_left -= length
            budget -= length
            tokens += length
        self._prompt_tokens += tokens
        return tokens, requests

    def _admit(self) -> SyntheticRequest | None:
        if not self._waiting or len(self._running) >= self._limits.max_batch_size:
            return None
        entry = self._waiting.pop(0)
        entry.admitted_ns = time.monotonic_ns()
        self._running.append(entry)
        return entry

    def _fault(self, step: int) -> Internal | None:
        """Raises where the engine itself is to stop."""
        for failure in self._settings.failures:
            if failure.what == "process" and step == failure.at:
                os._exit(1)
            if failure.what == "engine" and step == failure.at:
                raise RuntimeError(f"step {step} is set to stop the engine")
            if failure.what == "step" and (step == failure.at or (failure.always and step > failure.at)):
                logger.error("step %d is set to fail", step)
                return Internal("the engine failed to compute this request")
        return None

    def _end_step(self, error: Internal | None) -> None:
        self._steps += 1
        now_ns = time.monotonic_ns()
        if self._emissions is not None:
            self._emissions.step(self._steps, now_ns)
        ended = []
        for entry in self._running:
            if error is None and entry.prefill_left:
                continue
            if error is None and not entry.fails:
                entry.emitted += 1
                self._output_tokens += 1
                if entry.emitted == 1 and self._emissions is not None:
                    entry.slot = self._emissions.begin(entry.key, self._steps, entry.submitted_ns)
                if entry.request.streaming:
                    self._news[entry.id] = entry
            if error is not None or entry.complete or entry.fails_after is not None:
                ended.append(entry)
        for entry in ended:
            if error is not None or entry.fails:
                self._end(entry, FinishReason.ERROR, error or Internal("the engine failed to compute this request"))
            elif entry.complete:
                self._end(entry, entry.natural_end)
        self._output.notify_all()

    def _end_cancelled_and_late(self) -> None:
        for request_id in list(self._cancelled):
            self._end(self._live[request_id], FinishReason.CANCELLED)
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            if entry := self._live.get(request_id):
                self._end(entry, FinishReason.TIMEOUT)

    def _end(self, entry: SyntheticRequest, reason: FinishReason, error: MixtralError | None = None) -> None:
        (self._running if entry in self._running else self._waiting).remove(entry)
        self._finish(entry, reason, error)

    def _finish(self, entry: SyntheticRequest, reason: FinishReason, error: MixtralError | None) -> None:
        del self._live[entry.id]
        self._cancelled.discard(entry.id)
        entry.finish_reason, entry.error = reason, error
        if entry.slot is not None and self._emissions is not None:
            self._emissions.end(entry.slot, entry.emitted)
        self._finished[reason.value] += 1
        self._news[entry.id] = entry
        self._output.notify_all()
