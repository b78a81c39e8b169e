"""Requests and responses, from the engine seam's to TensorRT-LLM's and back. Pure functions over the bindings.

Semantics: TensorRT-LLM's docs/source/advanced/gpt-runtime.md (sampling) and cpp/tensorrt_llm/batch_manager/
llmRequest.cpp (what a response holds).
"""

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from mixtral_runtime.engine import FinishReason, Request, SamplingParams
from mixtral_runtime.errors import Internal, InvalidArgument, MixtralError, Unavailable
from mixtral_runtime.manifest import Returns

NO_END_ID = -1  # an id that is never sampled; what the executor takes when it is left out has changed
_REFUSED = "error when fetching new request"  # begins the executor's text for a request that it did not accept
_LOCATION = re.compile(r"\s*\(/\S+?:\d+\)")  # where in NVIDIA's sources an assertion failed; no business of a client


@dataclass(slots=True)
class Piece:
    """What one response says. log_probs: one per token of `token_ids`, None when not asked for or not complete.
    running_s: seconds from the request's first scheduling to its newest token, None when not known."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] | None = None
    prompt_log_probs: list[float] | None = None
    finish_reason: FinishReason | None = None
    error: MixtralError | None = None
    running_s: float | None = None


def check_returnable(request: Request, returns: Returns) -> None:
    """Raises InvalidArgument for outputs that this engine cannot give."""
    if request.return_prompt_log_probs and not returns.prompt_log_probs:
        raise InvalidArgument(
            "return_prompt_log_probs is 1, this engine supports only 0: it was built without --gather_context_logits"
        )
    if request.top_log_probs:
        raise InvalidArgument(f"top_log_probs is {request.top_log_probs}, TensorRT-LLM engines support only 0")


def bindings_request(trtllm: Any, request: Request, vocab_size: int) -> Any:
    """A Request of the bindings. The prompt comes back in no output, and an end token is always named: without one
    the library's default would decide."""
    arguments: dict[str, Any] = {}
    if request.stop_sequences:
        arguments["stop_words"] = request.stop_sequences
    if request.bad_sequences:
        arguments["bad_words"] = request.bad_sequences
    if request.logit_bias:
        bias = torch.zeros(vocab_size)  # float32, the type in which engines give their logits
        bias[list(request.logit_bias)] = torch.tensor(list(request.logit_bias.values()))
        arguments["embedding_bias"] = bias
    if request.timeout_s is not None:
        arguments["allotted_time_ms"] = timedelta(seconds=request.timeout_s)  # despite its name
    return trtllm.Request(
        input_token_ids=request.prompt_ids,
        max_tokens=request.max_tokens,
        streaming=request.streaming,
        sampling_config=sampling_config(trtllm, request.sampling, request.min_tokens),
        output_config=trtllm.OutputConfig(
            return_log_probs=request.return_log_probs,
            return_context_logits=request.return_prompt_log_probs,
            exclude_input_from_output=True,
            return_perf_metrics=True,  # how long it waited in the queue
        ),
        end_id=NO_END_ID if request.end_id is None else request.end_id,
        priority=request.priority,
        **arguments,
    )


def sampling_config(trtllm: Any, sampling: SamplingParams, min_tokens: int = 0) -> Any:
    """A SamplingConfig of the bindings. top_k or top_p is always given: without both the library is greedy whatever
    the temperature, and returns no log probabilities. The seed is always given: its default is 0 for everyone."""
    arguments: dict[str, Any] = {"seed": sampling.seed}
    if sampling.repetition_penalty != 1.0:
        arguments["repetition_penalty"] = sampling.repetition_penalty
    for name in ("presence_penalty", "frequency_penalty"):
        if penalty := getattr(sampling, name):
            arguments[name] = penalty
    if min_tokens:
        arguments["min_tokens"] = min_tokens
    if sampling.greedy:
        return trtllm.SamplingConfig(top_k=1, **arguments)
    if sampling.min_p > 0.0:
        arguments["min_p"] = sampling.min_p
    return trtllm.SamplingConfig(
        top_k=sampling.top_k, top_p=sampling.top_p, temperature=sampling.temperature, **arguments
    )


def read_response(trtllm: Any, response: Any, request: Request, tokens_before: int) -> Piece:
    """tokens_before: how many tokens of the request came in earlier responses."""
    if response.has_error():
        return Piece(finish_reason=FinishReason.ERROR, error=request_error(response.error_msg))
    result = response.result
    token_ids = list(result.output_token_ids[0])  # the first and only beam
    log_probs = _new_log_probs(result, request, tokens_before, len(token_ids))
    finish_reason = _finish_reason(trtllm, result) if result.is_final else None
    error = (
        Internal(f"the engine ended the request: {result.finish_reasons[0]}")
        if finish_reason is FinishReason.ERROR
        else None
    )
    if finish_reason is FinishReason.STOP and token_ids and token_ids[-1] == request.end_id:
        # The decoding kernels leave the end token out; should a version not, the client sees no difference.
        del token_ids[-1]
        log_probs = None if log_probs is None else log_probs[: len(token_ids)]
    prompt_log_probs = None
    if request.return_prompt_log_probs and tokens_before == 0 and result.context_logits is not None:
        prompt_log_probs = log_probs_of(result.context_logits, request.prompt_ids)
    running_s = _running_s(result) if token_ids else None
    return Piece(token_ids, log_probs, prompt_log_probs, finish_reason, error, running_s)


def _new_log_probs(result: Any, request: Request, tokens_before: int, new: int) -> list[float] | None:
    """Of the new tokens: the executor repeats those of all earlier tokens in every response of a stream. A cancelled
    request may lack some."""
    if not request.return_log_probs or result.log_probs is None:
        return None
    log_probs = list(result.log_probs[0])
    start = tokens_before if len(log_probs) >= tokens_before + new else 0
    found = log_probs[start : start + new]
    return found if len(found) == new else None


def _running_s(result: Any) -> float | None:
    if (metrics := result.request_perf_metrics) is None:
        return None
    timing = metrics.timing_metrics
    newest = timing.last_token_time if result.is_final else timing.first_token_time
    scheduled = timing.first_scheduled_time
    if not (isinstance(newest, timedelta) and isinstance(scheduled, timedelta)):
        return None
    return (newest - scheduled).total_seconds()


def _finish_reason(trtllm: Any, result: Any) -> FinishReason:
    reasons = {
        trtllm.FinishReason.END_ID: FinishReason.STOP,
        trtllm.FinishReason.STOP_WORDS: FinishReason.STOP,
        trtllm.FinishReason.LENGTH: FinishReason.LENGTH,
        trtllm.FinishReason.TIMED_OUT: FinishReason.TIMEOUT,
        trtllm.FinishReason.CANCELLED: FinishReason.CANCELLED,
    }
    return reasons.get(result.finish_reasons[0], FinishReason.ERROR)


def log_probs_of(context_logits: Any, prompt_ids: list[int]) -> list[float]:
    """The log probability of every prompt token but the first. context_logits: tensor [prompt tokens, vocabulary]."""
    rows = context_logits[: len(prompt_ids) - 1].float().log_softmax(-1)
    return [rows[position, token].item() for position, token in enumerate(prompt_ids[1:])]


def request_error(text: str) -> MixtralError:
    """The executor's text of one request's failure, without the places in its sources and the stack it adds."""
    if _REFUSED in text:
        return InvalidArgument(f"the engine refused the request: {_reason(text)}")
    return Internal("the engine failed to compute this request")


def enqueue_error(error: Exception, max_queue_size: int) -> MixtralError:
    """What a raise of enqueue_request means for the request. TensorRT-LLM raises plain RuntimeErrors."""
    if isinstance(error, TypeError):  # ours, not the client's
        return Internal("the request could not be given to the engine")
    if "queue size" in str(error):
        return Unavailable(f"the queue is full, the limit is {max_queue_size} waiting requests")
    return InvalidArgument(f"the engine refused the request: {_reason(str(error))}")


def _reason(text: str) -> str:
    line = text.splitlines()[0] if text else "no reason given"
    sentence = line.rsplit("[ERROR]", 1)[-1].rsplit("Assertion failed:", 1)[-1]
    return _LOCATION.sub("", sentence).strip()
