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
            directory, replace(manifest, limits=_limits(manifest.limits, config)), torch.device("cpu")
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
                request_id = self._engine.submit(_engine_request(request, limits))
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
        if request.output_config.return_log_probs and _has_sampling(request.sampling_config):
            normalised = self._config.normalize_log_probs and _sampling(request.sampling_config).greedy
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
        return _MADE["Response"](request_id, result)


def _finish_reason(live: _Live, output: seam.Output) -> Any:
    kinds = _MADE["FinishReason"]
    match output.finish_reason:
        case None:
            return kinds.NOT_FINISHED
        case seam.FinishReason.LENGTH:
            return kinds.LENGTH
        case seam.FinishReason.CANCELLED:
            return kinds.CANCELLED
        case seam.FinishReason.TIMEOUT:
            return kinds.TIMED_OUT
    whole = live.token_ids + output.token_ids
    words = live.request.stop_words or []
    return kinds.STOP_WORDS if any(whole[-len(word) :] == word for word in words) else kinds.END_ID


def _limits(built: seam.EngineLimits, config: Any) -> seam.EngineLimits:
    """0 is a queue without limit."""
    return replace(
        built,
        max_batch_size=min(built.max_batch_size, config.max_batch_size or built.max_batch_size),
        max_num_tokens=min(built.max_num_tokens, config.max_num_tokens or built.max_num_tokens),
        max_queue_size=config.max_queue_size or 10**6,
    )


def _engine_request(request: Any, limits: seam.EngineLimits) -> seam.Request:
    room = limits.max_seq_len - len(request.input_token_ids)
    allotted = request.allotted_time_ms
    return seam.Request(
        prompt_ids=list(request.input_token_ids),
        max_tokens=min(request.max_tokens, room),  # the library warns in its log and goes on
        sampling=_sampling(request.sampling_config),
        end_id=None if request.end_id in (None, -1) else request.end_id,
        stop_sequences=[list(word) for word in request.stop_words or []],
        streaming=request.streaming,
        return_log_probs=bool(request.output_config.return_log_probs),
        timeout_s=None if allotted is None else allotted.total_seconds(),
        priority=request._bound["priority"],
    )


def _has_sampling(config: Any) -> bool:
    return bool(config.top_k) or bool(config.top_p)


def _sampling(config: Any) -> seam.SamplingParams:
    """Greedy whatever the temperature when neither top_k nor top_p is set."""
    seed = config.seed or 0
    penalty = 1.0 if config.repetition_penalty is None else config.repetition_penalty
    if not _has_sampling(config):
        return seam.SamplingParams(repetition_penalty=penalty, seed=seed)
    return seam.SamplingParams(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
        min_p=config.min_p or 0.0,
        repetition_penalty=penalty,
        seed=seed,
    )


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
