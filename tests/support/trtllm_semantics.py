"""What the library takes a request and a configuration to mean, in terms of the engine seam.

One difference cannot be said there: the library's presence and frequency penalties count the prompt's tokens too.
"""

from dataclasses import replace
from typing import Any

import torch

from mixtral_runtime.engine import EngineLimits, Request, SamplingParams


def executor_limits(built: EngineLimits, config: Any) -> EngineLimits:
    """0 is a queue without limit."""
    return replace(
        built,
        max_batch_size=min(built.max_batch_size, config.max_batch_size or built.max_batch_size),
        max_num_tokens=min(built.max_num_tokens, config.max_num_tokens or built.max_num_tokens),
        max_queue_size=config.max_queue_size or 10**6,
    )


def engine_request(request: Any, limits: EngineLimits, vocab_size: int) -> Request:
    room = limits.max_seq_len - len(request.input_token_ids)
    return Request(
        prompt_ids=list(request.input_token_ids),
        max_tokens=min(request.max_tokens, room),  # the library warns in its log and goes on
        sampling=sampling_params(request.sampling_config),
        end_id=None if request.end_id in (None, -1) else request.end_id,
        stop_sequences=[list(word) for word in request.stop_words or []],
        min_tokens=request.sampling_config.min_tokens or 0,
        bad_sequences=[list(word) for word in request.bad_words or []],
        logit_bias=logit_bias(request.embedding_bias, vocab_size),
        streaming=request.streaming,
        return_log_probs=bool(request.output_config.return_log_probs),
        priority=request._bound["priority"],
    )


def logit_bias(tensor: torch.Tensor | None, vocab_size: int) -> dict[int, float]:
    """The library throws for a tensor of another shape or of another type than the engine's logits."""
    if tensor is None:
        return {}
    if tensor.shape != (vocab_size,) or tensor.dtype != torch.float32:
        raise RuntimeError("[TensorRT-LLM][ERROR] Embedding bias data type must be same as model logits type.")
    return {index: tensor[index].item() for index in tensor.nonzero()[:, 0].tolist()}


def has_sampling(config: Any) -> bool:
    return bool(config.top_k) or bool(config.top_p)


def sampling_params(config: Any) -> SamplingParams:
    """Greedy whatever the temperature when neither top_k nor top_p is set."""
    seed = config.seed or 0
    penalties: dict[str, Any] = {
        "repetition_penalty": 1.0 if config.repetition_penalty is None else config.repetition_penalty,
        "presence_penalty": config.presence_penalty or 0.0,
        "frequency_penalty": config.frequency_penalty or 0.0,
    }
    if not has_sampling(config):
        return SamplingParams(**penalties, seed=seed)
    return SamplingParams(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
        min_p=config.min_p or 0.0,
        **penalties,
        seed=seed,
    )
