"""The engine seam: what every runtime offers and all that the rest of the project knows of an engine.

Two runtimes stand behind it, the PyTorch engine (`mixtral_runtime.pytorch`) and TensorRT-LLM's executor
(`mixtral_runtime.tensorrt_llm`). How the calls map onto `tensorrt_llm.bindings.executor` (1.2):

=====================  ====================================================================================
seam                   TensorRT-LLM
=====================  ====================================================================================
submit(Request)        Executor.enqueue_request(Request(...)) -> id. A raise there becomes an `InvalidArgument`
                       or `Unavailable` of this one request. `stop_sequences` are its `stop_words` (lists of token
                       lists), `end_id` its `end_id`, `timeout_s` its `allotted_time_ms` (a timedelta).
SamplingParams         SamplingConfig: greedy is top_k=1; otherwise top_k and top_p are always given, because both
                       left out would be greedy there. `seed` is always given, its default being 0. Its presence
                       and frequency penalties count the prompt's tokens too.
Request.min_tokens     SamplingConfig(min_tokens=...).
bad_sequences          Request(bad_words=...), lists of token lists.
logit_bias             Request(embedding_bias=...), a float32 tensor of the vocabulary's size.
output flags           OutputConfig(return_log_probs, return_context_logits for prompt log probabilities,
                       exclude_input_from_output=True).
cancel(id)             Executor.cancel_request(id): asynchronous; the final output (`cancelled`) still comes.
poll(timeout_s)        Executor.await_responses(timedelta): one blocking call for all requests; releases the GIL.
Output.token_ids       Result.output_token_ids[0]: the new tokens only, while streaming.
Output.queued_s        what of the time to the first token is not request_perf_metrics' first_scheduled to first_token.
Output.finish_reason   END_ID and STOP_WORDS -> stop, LENGTH -> length, CANCELLED, TIMED_OUT; has_error() -> error.
stats()                get_latest_iteration_stats(): active, queued, max_num_active, kv_cache_stats.
close(drain_s)         stop admitting, go on polling until nothing is live or the time is up, then shutdown().
=====================  ====================================================================================

Ids are the engine's own and never a client's. Expert and linear weights are reached through the objects of
`mixtral_runtime.formats`, so expert caching and adapters come without a change here.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mixtral_runtime.errors import InvalidArgument, MixtralError

MAX_TOP_K = 1024  # TensorRT-LLM's range; the same everywhere, so that a request means the same on both runtimes
MAX_STOP_SEQUENCES = 64
MAX_BAD_SEQUENCES = 128
MAX_PENALTY = 100.0
MAX_LOGIT_BIAS = 10_000.0  # exact in every type that a runtime keeps logits in
MAX_PRIORITY = 1.0


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The default is greedy.

    temperature: 0 is greedy. top_k: keep the k most likely, 0 keeps all, 1 is greedy. top_p: keep the smallest set
    whose probability reaches p, after top_k. min_p: drop what is less likely than min_p times the most likely token.
    repetition_penalty: divides positive and multiplies negative logits of tokens that occur in prompt or output.
    presence_penalty, frequency_penalty: taken from the logit of a token that occurs in the output, once and for each
    time (on TensorRT-LLM in prompt or output). seed: the same request with the same seed gives the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    def validate(self) -> None:
        """Raises InvalidArgument naming the parameter, its value and the range."""
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_k", self.top_k, 0, MAX_TOP_K)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidArgument("top_p is 0, it must be above 0 and at most 1")
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_range("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("seed", self.seed, 0, 2**64 - 1)


GREEDY = SamplingParams()


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if math.isnan(value) or not low <= value <= high:
        raise InvalidArgument(f"{name} is {value:g}, it must be from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate.

    prompt_ids: the tokenised prompt, BOS included. end_id: generation stops when it is sampled, and it is not part of
    the output; None generates to `max_tokens`. stop_sequences: token sequences that end the generation; the tokens of
    the sequence are part of the output. min_tokens: the end token is not sampled before so many output tokens; stop
    sequences end all the same. bad_sequences: token sequences that the output never completes, prompt and output read
    as one. logit_bias: added to the logits of these token ids before all else. streaming: outputs as they come, else
    one final output with everything. top_log_probs: how many alternatives per position (needs return_log_probs).
    timeout_s: from submission. priority: 0 to 1, higher first among the waiting, and last to give way where running
    sequences can lose their memory.
    """

    prompt_ids: list[int]
    max_tokens: int
    sampling: SamplingParams = GREEDY
    end_id: int | None = None
    stop_sequences: list[list[int]] = field(default_factory=list)
    min_tokens: int = 0
    bad_sequences: list[list[int]] = field(default_factory=list)
    logit_bias: dict[int, float] = field(default_factory=dict)
    streaming: bool = True
    return_log_probs: bool = False
    return_prompt_log_probs: bool = False
    top_log_probs: int = 0
    timeout_s: float | None = None
    priority: float = 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of the whole request so far."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class TopLogProbs:
    """The most likely tokens at one position, best first."""

    token_ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True, slots=True)
class Output:
    """What a request produced since its last output. Exactly one output per request is final, and it is the last.

    log_probs: natural logarithm, one per token of `token_ids`, of the model's own distribution, before biases,
    penalties, temperature and filters (on TensorRT-LLM after the first three); None also where a cancel lost some.
    prompt_log_probs: on the first output, one for every prompt token but the first. finish_reason and, on failure,
    `error` are set on the final output only. queued_s: on one output, the first that knows it: seconds from submission
    until the request was first scheduled; always None when it never was or the runtime does not tell.
    """

    id: int
    token_ids: list[int]
    counts: Counts
    log_probs: list[float] | None = None
    prompt_log_probs: list[float] | None = None
    top_log_probs: list[TopLogProbs] | None = None
    final: bool = False
    finish_reason: FinishReason | None = None
    error: MixtralError | None = None
    queued_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine accepts. Token counts.

    max_batch_size: sequences decoded at once. max_input_len: prompt tokens. max_seq_len: prompt plus output.
    max_num_tokens: tokens of one step, prefill chunks and decode together. max_queue_size: waiting requests.
    """

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_queue_size: int = 256


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot, cheap enough to take after every step.

    active, queued: sequences now. Since start: steps, tokens, prefix_blocks_reused and _missed (KV blocks of prompts
    found in the cache or not), preemptions (sequences put back to free their blocks)."""

    active: int
    queued: int
    max_batch_size: int
    kv_blocks_total: int
    kv_blocks_free: int
    tokens_per_block: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    finished: dict[str, int]  # by finish reason, since start
    prefix_blocks_reused: int = 0
    prefix_blocks_missed: int = 0
    preemptions: int = 0


class Engine(Protocol):
    """One loaded model. All methods may be called from any thread; `poll` by one thread at a time."""

    @property
    def limits(self) -> EngineLimits: ...

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id at once. Raises InvalidArgument or Unavailable."""

    def cancel(self, request_id: int) -> None:
        """Asks the engine to end a request; its final output says `cancelled`. Unknown and ended ids are ignored."""

    def poll(self, timeout_s: float) -> list[Output]:
        """Waits until there is output and drains all of it: at most one output per request and call, in order of
        generation per request. Empty after `timeout_s` seconds without output."""

    def stats(self) -> EngineStats: ...

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, lets running ones finish for `drain_s` seconds, cancels the rest, frees everything.
        Outputs stay pollable until drained."""


def validate_request(request: Request, limits: EngineLimits, vocab_size: int) -> None:
    """The checks every runtime makes before any model work. Raises InvalidArgument with the limit and the value."""
    prompt_len = len(request.prompt_ids)
    if prompt_len == 0:
        raise InvalidArgument("the prompt is empty, it must have at least one token")
    if prompt_len > limits.max_input_len:
        raise InvalidArgument(f"the prompt has {prompt_len} tokens, the limit is {limits.max_input_len}")
    if request.max_tokens < 1:
        raise InvalidArgument(f"max_tokens is {request.max_tokens}, it must be at least 1")
    if prompt_len + request.max_tokens > limits.max_seq_len:
        room = limits.max_seq_len - prompt_len
        raise InvalidArgument(
            f"max_tokens is {request.max_tokens}, the limit for a prompt of {prompt_len} tokens is {room} "
            f"(sequence length {limits.max_seq_len})"
        )
    _check_ids("the prompt", request.prompt_ids, vocab_size)
    if len(request.stop_sequences) > MAX_STOP_SEQUENCES or any(not stop for stop in request.stop_sequences):
        raise InvalidArgument(
            f"there are {len(request.stop_sequences)} stop sequences, the limit is {MAX_STOP_SEQUENCES}, none empty"
        )
    _check_constraints(request, vocab_size)
    _check_range("top_log_probs", request.top_log_probs, 0, 20)
    _check_range("priority", request.priority, 0.0, MAX_PRIORITY)
    if request.timeout_s is not None and not request.timeout_s > 0:
        raise InvalidArgument(f"timeout is {request.timeout_s:g} s, it must be above 0")
    if request.sampling is not GREEDY:
        request.sampling.validate()


def _check_constraints(request: Request, vocab_size: int) -> None:
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise InvalidArgument(
            f"min_tokens is {request.min_tokens}, it must be from 0 to max_tokens, which is {request.max_tokens}"
        )
    if len(request.bad_sequences) > MAX_BAD_SEQUENCES or not all(request.bad_sequences):
        raise InvalidArgument(
            f"there are {len(request.bad_sequences)} bad sequences, the limit is {MAX_BAD_SEQUENCES}, none empty"
        )
    for sequence in request.bad_sequences:
        _check_ids("a bad sequence", sequence, vocab_size)
    if request.logit_bias:
        _check_ids("logit_bias", request.logit_bias, vocab_size)
    for token, bias in request.logit_bias.items():
        _check_range(f"logit_bias of token {token}", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def _check_ids(where: str, ids: Collection[int], vocab_size: int) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        raise InvalidArgument(f"{where} has token id {low if low < 0 else high}, ids run from 0 to {vocab_size - 1}")
