"""A double of TensorRT-LLM's executor bindings, for MIXTRAL_TRTLLM_BINDINGS. It is no TensorRT-LLM.

Its names, arguments and types are those recorded of the library (`strict_bindings`); behind its Executor the PyTorch
engine makes the tokens, from the weights in the same engine directory. It behaves as NVIDIA's sources say the library
does: executorImpl.cpp (queue, cancel, shutdown, statistics), llmRequest.cpp (what a response holds, what is refused),
gpt-runtime.md (sampling).
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from strict_bindings import RECORDED, bind_arguments, make_bindings, set_values
from trtllm_semantics import engine_request, executor_limits, has_sampling, sampling_params

from mixtral_runtime import engine as seam  # its Request and FinishReason have the library's names
from mixtral_runtime.errors import Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.pytorch.engine import PyTorchEngine

_MADE = make_bindings()
_AT = "(/src/tensorrt_llm/cpp/tensorrt_llm/executor/executorImpl.cpp:1234)\n1       0x7f0000000000 a stack"
_FOREVER_S = 3600.0


def _strict(method: Any) -> Any:
    """Checks a call of an Executor's method against what is recorded of it."""
    spec = RECORDED["Executor"]["methods"][method.__name__]

    @wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        overloads = [overload["args"] for overload in spec]
        return method(self, **bind_arguments(f"Executor.{method.__name__}", overloads, _MADE, args, kwargs))

    return checked


class _Live:
    """A request under way, as the caller gave it, and what was answered so far."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.log_probs: list[float] = []
        self.submitted_at = time.monotonic()
        self.timed_out = False
        self.timing: dict[str, timedelta] = {}  # on the steady clock, as nanobind gives it

    def saw(self, output: seam.Output) -> None:
        now = timedelta(seconds=time.monotonic())
        if output.queued_s is not None:
            self.timing["first_scheduled_time"] = timedelta(seconds=self.submitted_at + output.queued_s)
        if output.token_ids:
            self.timing.setdefault("first_token_time", now)
        if output.final:
            self.timing["last_token_time"] = now


class Executor:
    """The constructor and every method check their arguments; there are no others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = RECORDED["Executor"]
        bound = bind_arguments("Executor", [spec["init"], *spec["init_overloads"]], _MADE, args, kwargs)
        config = bound["executor_config"]
        self._config = config
        directory = Path(bound["model_path"])
        manifest = Manifest.load(directory)
        if bound["model_type"] is not _MADE["ModelType"].DECODER_ONLY:
            raise RuntimeError("[TensorRT-LLM][ERROR] the engine is of another model type")
        leads_by_mpi = config.parallel_config is not None and config.parallel_config.communication_mode.name == "LEADER"
        if manifest.world_size > 1 and not leads_by_mpi:
            raise RuntimeError("[TensorRT-LLM][ERROR] an engine of several ranks without a parallel configuration")
        self._shut_down = False
        self._ended = directory / "leader.ended"
        self._leads = os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0"
        if not self._leads:
            return  # the tokens are all made by the rank that leads
        torch.set_num_threads(1)
        self._engine = PyTorchEngine.open(
            directory, replace(manifest, limits=executor_limits(manifest.limits, config)), torch.device("cpu")
        )
        self._vocab_size = manifest.model.vocab_size
        self._live: dict[int, _Live] = {}
        self._refused: list[Any] = []
        self._refusals = 0
        self._lock = threading.Lock()
        self._last_steps = -1

    @_strict
    def enqueue_request(self, request: Any) -> int:
        self._check_open("cannot enqueue requests")
        limits = self._engine.limits
        if len(request.input_token_ids) > limits.max_input_len:
            return self._refuse(
                f"Prompt length ({len(request.input_token_ids)}) exceeds maximum input length "
                f"({limits.max_input_len}). Set log level to info"
            )
        if request.end_id is not None and not -1 <= request.end_id < self._vocab_size:
            return self._refuse(f"EndId ({request.end_id}) is not within acceptable range [-1, {self._vocab_size}).")
        if request.output_config.return_context_logits:
            return self._refuse("Return context logit need to build engine with gather_context_logits")
        with self._lock:
            try:
                request_id = self._engine.submit(engine_request(request, limits, self._vocab_size))
            except Unavailable as error:
                raise RuntimeError(
                    f"[TensorRT-LLM][ERROR] Maximum queue size of {limits.max_queue_size} has been reached, please try "
                    f"again later {_AT}"
                ) from error
            self._live[request_id] = _Live(request)
            return request_id

    @_strict
    def enqueue_requests(self, requests: list[Any]) -> list[int]:
        return [self.enqueue_request(request) for request in requests]

    @_strict
    def await_responses(self, timeout: timedelta | None) -> list[Any]:
        self._check_open("")
        with self._lock:
            refused, self._refused = self._refused, []
        wait_s = _FOREVER_S if timeout is None else timeout.total_seconds()
        self._end_timed_out()
        outputs = self._engine.poll(0.0 if refused else wait_s)
        with self._lock:
            return refused + [response for output in outputs for response in self._responses(output)]

    @_strict
    def cancel_request(self, id: int) -> None:
        self._check_open("")
        self._engine.cancel(id)

    @_strict
    def get_latest_iteration_stats(self) -> list[Any]:
        """Of the iterations since the last call, so none while nothing ran; here of the last one only."""
        self._check_open("")
        stats = self._engine.stats()
        if stats.steps == self._last_steps:
            return []
        self._last_steps = stats.steps
        kv_cache = set_values(
            _MADE["KvCacheStats"](),
            max_num_blocks=stats.kv_blocks_total,
            free_num_blocks=stats.kv_blocks_free,
            used_num_blocks=stats.kv_blocks_total - stats.kv_blocks_free,
            tokens_per_block=stats.tokens_per_block,
            reused_blocks=stats.prefix_blocks_reused,
            missed_blocks=stats.prefix_blocks_missed,
        )
        inflight = set_values(_MADE["InflightBatchingStats"](), num_paused_requests=0)
        return [
            set_values(
                _MADE["IterationStats"](),
                iter=stats.steps,
                num_active_requests=stats.active,
                num_queued_requests=stats.queued,
                max_num_active_requests=stats.max_batch_size,
                kv_cache_stats=kv_cache,
                inflight_batching_stats=inflight,
            )
        ]

    @_strict
    def can_enqueue_requests(self) -> bool:
        return self._leads and not self._shut_down

    @_strict
    def shutdown(self) -> None:
        self._shut_down = True
        if not self._leads:
            while not self._ended.exists():  # a rank that works returns when the leader has ended
                time.sleep(0.05)
            return
        self._engine.close()
        self._ended.touch()

    def _end_timed_out(self) -> None:
        """The allotted time is that of a request that runs; in the queue nobody looks at it."""
        now = time.monotonic()
        with self._lock:
            for request_id, live in self._live.items():
                sequence, allotted = self._engine._live.get(request_id), live.request.allotted_time_ms
                if sequence is None or sequence.admitted_at is None or allotted is None:
                    continue
                if now - sequence.admitted_at > allotted.total_seconds():
                    live.timed_out = True
                    self._engine.cancel(request_id)

    def _check_open(self, what: str) -> None:
        if self._shut_down:
            raise RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: Shutdown called, {what} {_AT}")

    def _refuse(self, reason: str) -> int:
        """The library finds these faults after it has given the request its id."""
        with self._lock:
            self._refusals += 1
            request_id = 10**9 + self._refusals
            text = f"Encountered an error when fetching new request: [TensorRT-LLM][ERROR] {reason} {_AT}"
            self._refused.append(_MADE["Response"](request_id, text))
            return request_id

    def _responses(self, output: seam.Output) -> Iterator[Any]:
        """One response per token of a stream, as iterations make them; one for all without streaming."""
        live = self._live[output.id]
        if output.final:
            del self._live[output.id]
        if output.error is not None:
            yield _MADE["Response"](output.id, f"Encountered an error in forwardAsync function: {output.error} {_AT}")
            return
        live.saw(output)
        reason = _finish_reason(live, output)
        pairs = list(zip(output.token_ids, output.log_probs or [0.0] * len(output.token_ids), strict=True))
        groups = [[pair] for pair in pairs] if live.request.streaming else [pairs]
        if live.request.streaming and (reason.name == "END_ID" or (output.final and not groups)):
            groups.append([])  # the end token comes in an iteration of its own, and is no output
        for group in groups:
            final = output.final and group is groups[-1]
            live.token_ids += [token for token, _ in group]
            live.log_probs += [value for _, value in group]
            finish_reason = reason if final else _MADE["FinishReason"].NOT_FINISHED
            yield self._response(output.id, live, [token for token, _ in group], finish_reason)

    def _response(self, request_id: int, live: _Live, token_ids: list[int], finish_reason: Any) -> Any:
        request = live.request
        if not request.streaming and not request.output_config.exclude_input_from_output:
            token_ids = list(request.input_token_ids) + token_ids
        log_probs = None
        if request.output_config.return_log_probs and has_sampling(request.sampling_config):
            normalised = self._config.normalize_log_probs and sampling_params(request.sampling_config).greedy
            log_probs = [[0.0] * len(live.log_probs) if normalised else list(live.log_probs)]  # of all tokens so far
        final = finish_reason.name != "NOT_FINISHED"
        result = set_values(
            _MADE["Result"](),
            is_final=final,
            is_sequence_final=final,
            sequence_index=0,
            output_token_ids=[token_ids],
            log_probs=log_probs,
            cum_log_probs=None if log_probs is None else [sum(log_probs[0])],
            finish_reasons=[finish_reason],
        )
        if request.output_config.return_perf_metrics:
            timing = set_values(_MADE["TimingMetrics"](), **live.timing)
            set_values(result, request_perf_metrics=set_values(_MADE["RequestPerfMetrics"](), timing_metrics=timing))
        return _MADE["Response"](request_id, result)


def _finish_reason(live: _Live, output: seam.Output) -> Any:
    kinds = _MADE["FinishReason"]
    match output.finish_reason:
        case None:
            return kinds.NOT_FINISHED
        case seam.FinishReason.LENGTH:
            return kinds.LENGTH
        case seam.FinishReason.CANCELLED:
            return kinds.TIMED_OUT if live.timed_out else kinds.CANCELLED
    whole = live.token_ids + output.token_ids
    words = live.request.stop_words or []
    return kinds.STOP_WORDS if any(whole[-len(word) :] == word for word in words) else kinds.END_ID


def _has_error(response: Any) -> bool:
    return response._values.get("error_msg") is not None


def _result(response: Any) -> Any:
    if _has_error(response):
        raise RuntimeError(f"[TensorRT-LLM][ERROR] the response has an error, no result {_AT}")
    return response._values["result"]


_MADE["Response"].has_error = _has_error
_MADE["Response"].result = property(_result)
_MADE["Executor"] = Executor
globals().update(_MADE)
