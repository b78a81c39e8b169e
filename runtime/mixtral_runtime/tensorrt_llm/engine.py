"""The engine seam over TensorRT-LLM's executor: one thread waits for responses, any thread submits, cancels, polls."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any, Self

import torch

from mixtral_runtime.engine import EngineLimits, EngineStats, FinishReason, Output, Request, validate_request
from mixtral_runtime.errors import CheckpointError, Internal, MixtralError, Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.bindings import REBUILD, Bindings, check_version, load_bindings
from mixtral_runtime.tensorrt_llm.conversion import (
    Piece,
    bindings_request,
    check_returnable,
    enqueue_error,
    read_response,
)
from mixtral_runtime.tensorrt_llm.executor_config import effective_limits, executor_config
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings
from mixtral_runtime.tensorrt_llm.statistics import ExecutorStatistics
from mixtral_runtime.tensorrt_llm.stream import Stream

STOPPED = "the engine has stopped after a failure"
AWAIT_S = 0.25  # how long one wait for responses lasts when none come; statistics and deadlines are seen to between
CANCEL_S = 10.0  # how long the executor may take to end the requests that closing cancels

logger = logging.getLogger(__name__)


class TensorRtLlmEngine:
    """`mixtral_runtime.engine.Engine` on `tensorrt_llm.bindings.executor.Executor`.

    A request's id is the executor's. One lock guards the streams; the wait for responses runs outside it and, in the
    library, outside Python's own lock, so nobody polls and nobody waits for the model.
    """

    def __init__(self, trtllm: Any, executor: Any, manifest: Manifest, limits: EngineLimits) -> None:
        self._trtllm = trtllm
        self._executor = executor
        self._manifest = manifest
        self._limits = limits
        self._live: dict[int, Stream] = {}
        self._news: dict[int, Stream] = {}  # have output that was not polled
        self._closing = self._stopped = self._failed = False
        self._statistics = ExecutorStatistics()
        self._prompt_tokens = self._output_tokens = 0
        self._finished = {reason.value: 0 for reason in FinishReason}
        self._lock = Lock()
        self._output = Condition(self._lock)  # poll waits here for news, close for the last stream and for its own end
        self._thread = Thread(target=self._run, name="engine-responses", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, engine_dir: Path, manifest: Manifest, settings: TensorRtLlmSettings) -> Self:
        """Loads an engine directory. Raises CheckpointError when the library or the GPU is not what it was built for,
        Internal when the executor cannot load it, Unavailable on a rank that only worked for another."""
        bindings = load_bindings()
        check_machine(manifest, bindings)
        trtllm = bindings.module
        limits = effective_limits(manifest.limits, settings)
        config = executor_config(trtllm, manifest, settings)
        try:
            executor = trtllm.Executor(
                model_path=engine_dir, model_type=trtllm.ModelType.DECODER_ONLY, executor_config=config
            )
        except RuntimeError as error:
            logger.exception("TensorRT-LLM could not load %s", engine_dir)
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            raise Internal(f"TensorRT-LLM could not load the engine: {reason}") from error
        if not executor.can_enqueue_requests():
            executor.shutdown()  # a rank that works for the leader: this returns when the leader has ended
            raise Unavailable("the leading rank of this engine has ended")
        return cls(trtllm, executor, manifest, limits)

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def submit(self, request: Request) -> int:
        validate_request(request, self._limits, self._manifest.model.vocab_size)
        check_returnable(request, self._manifest.returns)
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        with self._lock:  # a response may come before the id is known here
            if self._failed:
                raise Internal(STOPPED)
            if self._closing:
                raise Unavailable("the engine is shutting down")
            try:
                converted = bindings_request(self._trtllm, request, self._manifest.model.vocab_size)
                request_id: int = self._executor.enqueue_request(converted)
            except Exception as error:
                refusal = enqueue_error(error, self._limits.max_queue_size)
                if isinstance(refusal, Internal):
                    logger.exception("a request could not be enqueued")
                raise refusal from error
            self._live[request_id] = Stream(request_id, request, deadline)
            return request_id

    def cancel(self, request_id: int) -> None:
        with self._lock:
            if request_id in self._live:
                self._executor.cancel_request(request_id)

    def poll(self, timeout_s: float) -> list[Output]:
        with self._lock:
            self._output.wait_for(lambda: self._news, timeout_s)
            outputs = [stream.take_output() for stream in self._news.values()]
            self._news.clear()
            return outputs

    def stats(self) -> EngineStats:
        """Without asking the executor. What it said last may be of a time before the newest requests came or the last
        ones went, so the live streams decide how many there are."""
        with self._lock:
            live, known = len(self._live), self._statistics
            active = min(live, known.active)
            return EngineStats(
                active=active,
                queued=live - active,
                max_batch_size=self._limits.max_batch_size,
                kv_blocks_total=known.kv_blocks_total,
                kv_blocks_free=known.kv_blocks_free if live else known.kv_blocks_total,
                tokens_per_block=known.tokens_per_block,
                steps=known.steps,
                prompt_tokens=self._prompt_tokens,
                output_tokens=self._output_tokens,
                finished=dict(self._finished),
                prefix_blocks_reused=known.prefix_blocks_reused,
                prefix_blocks_missed=known.prefix_blocks_missed,
                preemptions=known.preemptions,
            )

    def close(self, drain_s: float = 0.0) -> None:
        with self._lock:
            self._closing = True
            self._output.wait_for(lambda: not self._live, drain_s)
            for request_id in self._live:
                self._executor.cancel_request(request_id)  # its final response is still awaited
            if not self._output.wait_for(lambda: not self._live, CANCEL_S):
                logger.error("the executor did not end %d cancelled requests", len(self._live))
                self._end_all(FinishReason.CANCELLED, None)
            already, self._stopped = self._stopped, True
            self._output.notify_all()
        self._thread.join()
        if not already:
            self._executor.shutdown()  # only now: it drops what is under way, and every later call raises

    def _run(self) -> None:
        """The waiting thread. When waiting itself fails, every request ends with an error, never silently."""
        try:
            while not self._stopped:
                started = time.monotonic()
                responses = self._executor.await_responses(timeout=timedelta(seconds=AWAIT_S))
                iterations = self._executor.get_latest_iteration_stats()
                with self._lock:
                    self._deliver(responses)
                    self._statistics.add(iterations)
                    self._cancel_late()
                    # An executor that was shut down from inside answers at once, with nothing.
                    if not responses and (rest := started + AWAIT_S - time.monotonic()) > 0:
                        self._output.wait_for(lambda: self._stopped, rest)
        except Exception:
            logger.exception("the engine stopped")
            with self._lock:
                self._failed = True
                self._end_all(FinishReason.ERROR, Internal(STOPPED))

    def _deliver(self, responses: list[Any]) -> None:
        for response in responses:
            stream = self._live.get(response.request_id)
            if stream is None:
                continue
            before = stream.received
            stream.add(self._read(response, stream))
            self._output_tokens += stream.received - before
            if before == 0 and (stream.received > 0 or stream.finish_reason is FinishReason.STOP):
                self._prompt_tokens += len(stream.request.prompt_ids)
            self._news[stream.id] = stream
            if stream.finish_reason is not None:
                self._forget(stream)
        if responses:
            self._output.notify_all()

    def _read(self, response: Any, stream: Stream) -> Piece:
        """What cannot be read fails its own request only."""
        try:
            return read_response(self._trtllm, response, stream.request, stream.received)
        except Exception:
            logger.exception("a response could not be read")
            self._executor.cancel_request(stream.id)
            return Piece(finish_reason=FinishReason.ERROR, error=Internal("the engine's response could not be read"))

    def _cancel_late(self) -> None:
        """The executor looks at the time of running requests only, not of those in its queue."""
        now = time.monotonic()
        for stream in self._live.values():
            if stream.deadline is not None and now >= stream.deadline and not stream.late:
                stream.late = True
                self._executor.cancel_request(stream.id)

    def _end_all(self, reason: FinishReason, error: MixtralError | None) -> None:
        for stream in list(self._live.values()):
            stream.add(Piece(log_probs=[], finish_reason=reason, error=error))
            self._news[stream.id] = stream
            self._forget(stream)
        self._output.notify_all()

    def _forget(self, stream: Stream) -> None:
        assert stream.finish_reason is not None
        del self._live[stream.id]
        self._finished[stream.finish_reason.value] += 1


def check_machine(manifest: Manifest, bindings: Bindings) -> None:
    """An engine runs only with the version and on the architecture that it was built with. Raises CheckpointError.

    Injected bindings have no version of TensorRT-LLM and need no GPU."""
    if bindings.version is None:
        return
    check_version(manifest, bindings.version)
    if not torch.cuda.is_available():
        raise CheckpointError(f"the engine was built for {manifest.gpu}, this machine has no CUDA GPU; {REBUILD}")
    found = "sm{}{}".format(*torch.cuda.get_device_capability())
    if found != manifest.gpu:
        raise CheckpointError(f"the engine was built for {manifest.gpu}, the GPU is {found}; {REBUILD}")
