"""The engine seam over the PyTorch model: one thread runs steps, any thread submits, cancels and polls."""

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Self

import torch

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import EngineLimits, EngineStats, FinishReason, Output, Request, validate_request
from mixtral_runtime.errors import CheckpointError, Internal, InvalidArgument, MixtralError, Unavailable
from mixtral_runtime.manifest import Manifest, ModelInfo
from mixtral_runtime.pytorch.block_pool import BlockPool
from mixtral_runtime.pytorch.decode_graphs import DecodeGraphs, cuda_recorder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, cache_dtype, plan_blocks
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.sampler import new_sampler
from mixtral_runtime.pytorch.scheduler import Scheduler, Work
from mixtral_runtime.pytorch.sequence import Sequence
from mixtral_runtime.pytorch.settings import PyTorchSettings
from mixtral_runtime.pytorch.step import StepResult, StepRunner
from mixtral_runtime.pytorch.step_loop import run_steps

STOPPED = "the engine has stopped after a failure"

logger = logging.getLogger(__name__)


class PyTorchEngine:
    """`mixtral_runtime.engine.Engine` on a CPU or one CUDA GPU.

    One lock guards scheduler, sequences and counters; the step itself runs outside it. So submit, cancel, poll and
    stats never wait for the model.

    On a GPU the next step is launched before the last one's tokens are here, so that the device never waits for the
    host. A sequence whose last token was a stop has then computed one more in vain, which nobody sees.
    """

    def __init__(
        self,
        model: MixtralModel,
        limits: EngineLimits,
        kv_cache_tokens: int | None = None,
        settings: PyTorchSettings | None = None,
        *,
        launch_ahead: bool | None = None,
    ) -> None:
        """kv_cache_tokens: None plans the cache from the limits and the free memory. settings: None is the defaults.
        launch_ahead: whether a step is launched before the last one is collected; None for what the device gains from.
        Raises InvalidArgument when the limits exceed the model or the memory, or the settings the limits."""
        settings = settings or PyTorchSettings()
        limits = settings.lowered(limits)
        positions = model.config.max_position_embeddings
        if limits.max_seq_len > positions:
            raise InvalidArgument(f"max_seq_len is {limits.max_seq_len}, the model's limit is {positions} positions")
        blocks = plan_blocks(
            model.config, limits, kv_cache_tokens, model.device, cache_dtype(model.config, model.dtype)
        )
        is_gpu = model.device.type == "cuda"
        self._device = model.device
        with _current(self._device):
            self._runner: StepRunner | None = _new_runner(model, blocks, limits, settings)
        self._launch_ahead = is_gpu if launch_ahead is None else launch_ahead
        self._vocab_size = model.config.vocab_size
        self._limits = limits
        self._scheduler = Scheduler(limits, BlockPool(blocks, reuse=settings.kv_cache_block_reuse))
        self._live: dict[int, Sequence] = {}
        self._news: dict[int, Sequence] = {}  # have output that was not polled
        self._ids = count(1)
        self._closing = self._stopped = self._failed = False
        self._cancelled: list[Sequence] = []
        self._next_deadline = math.inf  # no live sequence has an earlier one
        self._steps = self._output_tokens = 0
        self._finished = {reason.value: 0 for reason in FinishReason}
        self._lock = Lock()
        self._wake = Condition(self._lock)  # the step thread waits here for work
        self._output = Condition(self._lock)  # poll waits here for news, close for the last sequence
        self._thread = Thread(target=self._run, name="engine-step", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        engine_dir: Path,
        manifest: Manifest,
        device: torch.device,
        activation_dtype: torch.dtype | None = None,
        settings: PyTorchSettings | None = None,
    ) -> Self:
        """Loads an engine directory. activation_dtype: None for the checkpoint's own. Raises CheckpointError when the
        checkpoint in it is damaged or is not the model of the manifest."""
        checkpoint = Checkpoint.open(engine_dir)
        found, expected = asdict(ModelInfo.of(checkpoint.config)), asdict(manifest.model)
        for name, value in expected.items():
            if found[name] != value:
                raise CheckpointError(
                    f"the manifest says {name} {value}, the checkpoint has {found[name]}; "
                    f"build the engine again with `mixtral-build engine`"
                )
        model = MixtralModel.load(checkpoint, device, activation_dtype)
        return cls(model, manifest.limits, manifest.kv_cache_tokens, settings)

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def submit(self, request: Request) -> int:
        validate_request(request, self._limits, self._vocab_size)
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        with self._lock:
            if self._failed:
                raise Internal(STOPPED)
            if self._closing:
                raise Unavailable("the engine is shutting down")
            sequence = Sequence(next(self._ids), request, deadline)
            self._scheduler.add(sequence)
            self._live[sequence.id] = sequence
            if deadline is not None:
                self._next_deadline = min(self._next_deadline, deadline)
            self._wake.notify()
            return sequence.id

    def cancel(self, request_id: int) -> None:
        with self._lock:
            if sequence := self._live.get(request_id):
                self._cancelled.append(sequence)
                self._wake.notify()

    def poll(self, timeout_s: float) -> list[Output]:
        with self._lock:
            self._output.wait_for(lambda: self._news, timeout_s)
            outputs = [sequence.take_output() for sequence in self._news.values()]
            self._news.clear()
            return outputs

    def stats(self) -> EngineStats:
        with self._lock:
            return EngineStats(
                active=len(self._scheduler.running),
                queued=len(self._scheduler.waiting),
                max_batch_size=self._limits.max_batch_size,
                kv_blocks_total=self._scheduler.pool.total,
                kv_blocks_free=self._scheduler.pool.free,
                tokens_per_block=BLOCK_SIZE,
                steps=self._steps,
                prompt_tokens=self._scheduler.prompt_tokens,
                output_tokens=self._output_tokens,
                finished=dict(self._finished),
                prefix_blocks_reused=self._scheduler.blocks_reused,
                prefix_blocks_missed=self._scheduler.blocks_missed,
                preemptions=self._scheduler.preemptions,
            )

    def close(self, drain_s: float = 0.0) -> None:
        with self._lock:
            self._closing = True
            self._output.wait_for(lambda: not self._live, drain_s)
            self._cancelled += self._live.values()
            self._stopped = True
            self._wake.notify()
        self._thread.join()
        self._runner = None

    def _run(self) -> None:
        """The step thread. A fault of the scheduling itself ends every request with an error, never silently."""
        assert self._runner is not None
        try:
            with _current(self._device):
                run_steps(self._runner, self, launch_ahead=self._launch_ahead)
        except Exception:
            logger.exception("the engine stopped")
            with self._lock:
                self._failed = True
                for sequence in list(self._live.values()):
                    self._finish(sequence, FinishReason.ERROR, Internal(STOPPED))

    # What `step_loop.Ledger` asks, of the step thread.

    def next_work(self, *, wait: bool) -> list[Work]:
        """Empty also when the engine is stopped and nothing is live."""
        with self._lock:
            while True:
                self._end_cancelled_and_late()
                if work := self._scheduler.schedule():
                    return work
                if self._stopped or not wait:
                    return []
                self._wake.wait()

    def launched(self, work: list[Work]) -> None:
        with self._lock:
            for one in work:
                self._scheduler.launched(one)

    def failed(self, work: list[Work]) -> None:
        with self._lock:
            for one in work:
                self._scheduler.failed(one)

    def alive(self, work: list[Work]) -> list[Work]:
        with self._lock:
            return [one for one in work if one.sequence.id in self._live and one.current]

    def collected(self, results: list[StepResult]) -> None:
        with self._lock:
            self._steps += 1
            for result in results:
                if result.work.sequence.id in self._live:
                    self._commit(result)
            self._output.notify_all()

    def _end_cancelled_and_late(self) -> None:
        """Looks at every sequence only when a deadline has passed."""
        for sequence in self._cancelled:
            if sequence.id in self._live:
                self._end(sequence, FinishReason.CANCELLED)
        self._cancelled.clear()
        now = time.monotonic()
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        for sequence in list(self._live.values()):
            if sequence.deadline is None:
                continue
            if now >= sequence.deadline:
                self._end(sequence, FinishReason.TIMEOUT)
            else:
                self._next_deadline = min(self._next_deadline, sequence.deadline)

    def _commit(self, result: StepResult) -> None:
        sequence = result.work.sequence
        if result.error is not None:
            self._end(sequence, FinishReason.ERROR, result.error)
            return
        self._scheduler.collected(result.work)
        sequence.prompt_log_probs += result.prompt_log_probs
        if result.token is None:
            return
        before = sequence.output_len
        sequence.append(result.token, result.log_prob, result.top_log_probs)
        self._output_tokens += sequence.output_len - before
        if sequence.finish_reason is not None:
            self._end(sequence, sequence.finish_reason)
        elif sequence.request.streaming:
            self._news[sequence.id] = sequence

    def _end(self, sequence: Sequence, reason: FinishReason, error: MixtralError | None = None) -> None:
        self._scheduler.remove(sequence)
        self._finish(sequence, reason, error)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: MixtralError | None) -> None:
        del self._live[sequence.id]
        sequence.finish_reason, sequence.error = reason, error
        self._finished[reason.value] += 1
        self._news[sequence.id] = sequence
        self._output.notify_all()


def _new_runner(model: MixtralModel, blocks: int, limits: EngineLimits, settings: PyTorchSettings) -> StepRunner:
    """blocks: of the KV cache that sequences may have."""
    sampler = new_sampler(limits.max_batch_size, model.config.vocab_size, model.device)
    if model.device.type != "cuda":
        return StepRunner(model, model.new_cache(blocks), sampler)
    graphs = None
    cache = model.new_cache(blocks + 1)
    if settings.decode_graphs and model.recordable:
        graphs = DecodeGraphs(model, cache, limits.max_batch_size, limits.max_seq_len, cuda_recorder())
    runner = StepRunner(model, cache, sampler, graphs)
    runner.warm_up(limits)
    return runner


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes it the thread's device: kernels of a language of their own are launched on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
