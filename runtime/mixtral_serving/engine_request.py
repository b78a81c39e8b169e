"""From the input tensors of the `tensorrt_llm` model to the engine's Request.

Names, types and defaults are NVIDIA's (`inflight_batcher_llm`), so that its clients work unchanged; what an engine
behind our seam cannot do is refused by name and value, never ignored.
"""

import secrets
from dataclasses import dataclass, replace

import numpy as np

from mixtral_runtime.engine import GREEDY, Request, SamplingParams
from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.prepared_prompt import PreparedPrompt
from mixtral_serving.tensors import Array, Tensors, check_single_row, unpack_words

# Inputs that NVIDIA's clients send with a value that changes nothing. Any other value is refused.
NEUTRAL_VALUES: dict[str, tuple[float, ...]] = {
    "beam_width": (1,),
    "num_return_sequences": (1,),
    "len_penalty": (0.0, 1.0),
    "beam_search_diversity_rate": (0.0,),
    "early_stopping": (0, 1),  # concerns beam search only
    "runtime_top_p_min": (0.0,),
    "runtime_top_p_decay": (0.0, 1.0),
    "runtime_top_p_reset_ids": (-1, 0),
    "prompt_vocab_size": (0,),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
    "return_perf_metrics": (0,),
    "draft_acceptance_threshold": (0.0,),
    "skip_cross_attn_blocks": (0,),
    "lora_task_id": (0,),
}
# Inputs that carry data for features that are not there: refused unless empty.
UNSUPPORTED_DATA = frozenset(
    {
        "draft_input_ids",
        "draft_logits",
        "decoder_input_ids",
        "decoder_input_lengths",
        "prompt_embedding_table",
        "prompt_table_extra_ids",
        "encoder_input_features",
        "encoder_output_lengths",
        "cross_attention_mask",
        "mrope_rotary_cos_sin",
        "mrope_position_deltas",
        "lora_weights",
        "lora_config",
        "context_phase_params",
        "retention_token_range_starts",
        "retention_token_range_ends",
        "retention_token_range_priorities",
        "retention_token_range_durations_ms",
        "retention_decode_priority",
        "retention_decode_duration_ms",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
        "lookahead_window_size",
        "lookahead_ngram_size",
        "lookahead_verification_set_size",
    }
)
MAX_TIMEOUT_MS = 24 * 3600 * 1000
MAX_STREAM_INTERVAL = 1024


@dataclass(frozen=True, slots=True)
class ResponseFlags:
    """What the client wants of its responses: optional tensors, and how many tokens at least (interval)."""

    log_probs: bool
    num_input_tokens: bool
    num_output_tokens: bool
    interval: int = 1


_NO_FLAGS = ResponseFlags(log_probs=False, num_input_tokens=False, num_output_tokens=False)
_SAMPLING = frozenset(
    {
        "temperature",
        "runtime_top_k",
        "runtime_top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
    }
)
_OPTIONS = frozenset(
    {
        "timeout_ms",
        "stream_interval",
        "min_tokens",
        "return_log_probs",
        "return_prompt_log_probs",
        "top_log_probs",
        "return_num_input_tokens",
        "return_num_output_tokens",
    }
)


def engine_request(
    inputs: Tensors, default_end_id: int | None, prepared: PreparedPrompt | None = None
) -> tuple[Request, ResponseFlags]:
    """prepared: what `preprocessing` made of the prompt and its words, instead of the tensors for them.

    Raises InvalidArgument with the tensor's name, its value and what is allowed.

    Sampling: with none of temperature, runtime_top_k, runtime_top_p and min_p given, and with temperature 0 or
    runtime_top_k 1, the choice is greedy; otherwise those given apply, and a missing temperature is 1. A
    runtime_top_p of 0 counts as not given, as it does in NVIDIA's model. Without a seed one is drawn.
    """
    refuse_unsupported(inputs)
    prepared = prepared or _prompt(inputs)
    streaming = inputs.flag("streaming")
    if not streaming and not inputs.flag("exclude_input_in_output", True):
        # Streams never repeat the prompt; the ensemble puts its text in front by itself.
        raise InvalidArgument("exclude_input_in_output is 0, without streaming this engine supports only 1")
    request = Request(
        prompt_ids=prepared.token_ids,
        max_tokens=inputs.required("request_output_len"),
        sampling=_sampling(inputs) if inputs.has_any(_SAMPLING) else GREEDY,
        end_id=None if inputs.flag("ignore_eos") else _end_id(inputs, default_end_id),
        stop_sequences=prepared.stop_sequences,
        bad_sequences=prepared.bad_sequences,
        logit_bias=prepared.logit_bias,
        streaming=streaming,
    )
    # Asked at once, for most requests have none of them.
    return _with_options(request, inputs) if inputs.has_any(_OPTIONS) else (request, _NO_FLAGS)


def _with_options(request: Request, inputs: Tensors) -> tuple[Request, ResponseFlags]:
    timeout_ms = inputs.one("timeout_ms")
    if timeout_ms is not None and not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidArgument(f"timeout_ms is {timeout_ms}, it must be from 1 to {MAX_TIMEOUT_MS}")
    interval = inputs.one("stream_interval", 1)
    if not 1 <= interval <= MAX_STREAM_INTERVAL:
        raise InvalidArgument(f"stream_interval is {interval}, it must be from 1 to {MAX_STREAM_INTERVAL}")
    top_log_probs = inputs.one("top_log_probs", 0)
    flags = ResponseFlags(
        log_probs=inputs.flag("return_log_probs") or top_log_probs > 0,
        num_input_tokens=inputs.flag("return_num_input_tokens"),
        num_output_tokens=inputs.flag("return_num_output_tokens"),
        interval=interval,
    )
    request = replace(
        request,
        min_tokens=inputs.one("min_tokens", 0),
        return_log_probs=flags.log_probs,
        return_prompt_log_probs=inputs.flag("return_prompt_log_probs"),
        top_log_probs=top_log_probs,
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
    )
    return request, flags


def _sampling(inputs: Tensors) -> SamplingParams:
    temperature = inputs.one("temperature")
    top_k = inputs.one("runtime_top_k", 0)
    top_p = inputs.one("runtime_top_p", 0.0)
    min_p = inputs.one("min_p", 0.0)
    given = temperature is not None or top_k != 0 or top_p != 0.0 or min_p != 0.0
    seed = inputs.one("seed")
    return SamplingParams(
        temperature=(1.0 if given else 0.0) if temperature is None else temperature,
        top_k=top_k,
        top_p=1.0 if top_p == 0.0 else top_p,
        min_p=min_p,
        repetition_penalty=inputs.one("repetition_penalty", 1.0),
        presence_penalty=inputs.one("presence_penalty", 0.0),
        frequency_penalty=inputs.one("frequency_penalty", 0.0),
        seed=secrets.randbits(63) if seed is None else seed,
    )


def _prompt(inputs: Tensors) -> PreparedPrompt:
    """Of NVIDIA's tensors, from a client of this model itself."""
    ids = inputs.ids("input_ids")
    if ids is None:
        raise InvalidArgument("input_ids is missing, it must have at least one token")
    length = inputs.one("input_lengths", len(ids))
    if not 0 <= length <= len(ids):
        raise InvalidArgument(f"input_lengths is {length}, it must be from 0 to the {len(ids)} ids of input_ids")
    bias = inputs.array("embedding_bias")
    if bias is not None:
        check_single_row("embedding_bias", bias)
    return PreparedPrompt(
        ids[:length],
        context=b"",
        stop_sequences=unpack_words("stop_words_list", inputs.array("stop_words_list")),
        bad_sequences=unpack_words("bad_words_list", inputs.array("bad_words_list")),
        logit_bias={} if bias is None else logit_bias(bias.reshape(-1)),
    )


def logit_bias(values: Array) -> dict[int, float]:
    """[vocabulary]: NVIDIA's tensor has a value for every token; nearly all are zero."""
    (ids,) = np.nonzero(values)  # a NaN is among them, and is refused with its token
    return dict(zip(ids.tolist(), values[ids].tolist(), strict=True))


def _end_id(inputs: Tensors, default: int | None) -> int | None:
    """NVIDIA's clients send -1 or leave it out to mean the tokenizer's own."""
    end_id: int = inputs.one("end_id", -1)
    return end_id if end_id >= 0 else default


def refuse_unsupported(inputs: Tensors) -> None:
    for name in inputs.names():
        array = inputs.array(name)
        assert array is not None
        if (neutral := NEUTRAL_VALUES.get(name)) is not None:
            check_single_row(name, array)
            value = inputs.one(name)
            if value not in neutral:
                allowed = " or ".join(f"{allowed:g}" for allowed in neutral)
                raise InvalidArgument(f"{name} is {value:g}, this engine supports only {allowed}")
        elif name in UNSUPPORTED_DATA and array.size > 0:
            raise InvalidArgument(f"{name} was given, this engine does not support it")
