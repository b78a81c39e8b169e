"""What the library takes a request and a configuration to mean, in terms of the engine seam."""

from dataclasses import replace
from typing import Any

from mixtral_runtime.engine import EngineLimits, Request, SamplingParams


def executor_limits(built: EngineLimits, config: Any) -> EngineLimits:
    """0 is a queue without limit."""
    return replace(
        built,
        max_batch_size=min(built.max_batch_size, config.max_batch_size or built.max_batch_size),
        max_num_tokens=min(built.max_num_tokens, config.max_num_tokens or built.max_num_tokens),
        max_queue_size=config.max_queue_size or 10**6,
    )


def engine_request(request: Any, limits: EngineLimits) -> Request:
    room = limits.max_seq_len - len(request.input_token_ids)
    return Request(
        prompt_ids=list(request.input_token_ids),
        max_tokens=min(request.max_tokens, room),  # the library warns in its log and goes on
        sampling=sampling_params(request.sampling_config),
        end_id=None if request.end_id in (None, -1) else request.end_id,
        stop_sequences=[list(word) for word in request.stop_words or []],
        streaming=request.streaming,
        return_log_probs=bool(request.output_config.return_log_probs),
        priority=request._bound["priority"],
    )


def has_sampling(config: Any) -> bool:
    return bool(config.top_k) or bool(config.top_p)


def sampling_params(config: Any) -> SamplingParams:
    """Greedy whatever the temperature when neither top_k nor top_p is set."""
    seed = config.seed or 0
    penalty = 1.0 if config.repetition_penalty is None else config.repetition_penalty
    if not has_sampling(config):
        return SamplingParams(repetition_penalty=penalty, seed=seed)
    return SamplingParams(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
        min_p=config.min_p or 0.0,
        repetition_penalty=penalty,
        seed=seed,
    )
