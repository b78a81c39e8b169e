"""The config.pbtxt files keep NVIDIA's contract and the rules that Triton's ensembles impose."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "unary", "engine_info")


def load(model: str) -> Any:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), config)
    return config


def signature(tensors: Any) -> dict[str, str]:
    """name -> TYPE[dims]"""
    return {
        t.name: f"{model_config_pb2.DataType.Name(t.data_type).removeprefix('TYPE_')}{list(t.dims)}".replace(" ", "")
        for t in tensors
    }


def table(text: str) -> dict[str, str]:
    """Lines `TYPE[dims]: name name …`"""
    lines = [line.split(": ") for line in text.strip().splitlines()]
    return {name: kind.strip() for kind, names in lines for name in names.split()}


# TensorRT-LLM 1.2, triton_backend/all_models/inflight_batcher_llm/*/config.pbtxt
NVIDIA_ENSEMBLE_INPUTS = table("""
    STRING[1]: text_input decoder_text_input guided_decoding_guide_type guided_decoding_guide
    STRING[-1]: bad_words stop_words embedding_bias_words
    INT32[1]: max_tokens end_id pad_id top_k min_tokens beam_width num_return_sequences prompt_vocab_size
    FP32[1]: top_p temperature length_penalty repetition_penalty presence_penalty frequency_penalty
    UINT64[1]: seed prompt_table_extra_id lora_task_id
    BOOL[1]: stream exclude_input_in_output return_log_probs return_context_logits return_generation_logits
    BOOL[1]: return_perf_metrics return_num_input_tokens return_num_output_tokens
    FP32[-1]: embedding_bias_weights
    FP16[-1,-1]: prompt_embedding_table lora_weights
    INT32[-1,3]: lora_config
""")
NVIDIA_RESULTS = table("""
    FP32[-1]: cum_log_probs
    FP32[-1,-1]: output_log_probs
    INT32[1]: batch_index sequence_index num_input_tokens num_output_tokens
""")
# What NVIDIA's clients ask for together with return_context_logits, return_generation_logits or return_perf_metrics.
NVIDIA_REFUSED_RESULTS = table("""
    FP32[-1,-1]: context_logits
    FP32[-1,-1,-1]: generation_logits
    INT32[1]: kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks
    INT64[1]: arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns
    FP32[1]: acceptance_rate
    INT32[1]: total_accepted_draft_tokens total_draft_tokens
""")
NVIDIA_ENGINE_INPUTS = table("""
    INT32[1]: input_lengths request_output_len num_return_sequences end_id pad_id beam_width runtime_top_k
    INT32[1]: runtime_top_p_reset_ids min_tokens prompt_vocab_size encoder_output_lengths decoder_input_lengths
    INT32[-1]: input_ids draft_input_ids decoder_input_ids
    FP32[1]: temperature runtime_top_p runtime_top_p_min runtime_top_p_decay len_penalty repetition_penalty
    FP32[1]: presence_penalty frequency_penalty beam_search_diversity_rate draft_acceptance_threshold
    BOOL[1]: early_stopping return_log_probs return_context_logits return_generation_logits return_perf_metrics
    BOOL[1]: return_num_input_tokens return_num_output_tokens exclude_input_in_output stop streaming
    BOOL[1]: skip_cross_attn_blocks
    UINT64[1]: seed lora_task_id
    INT32[2,-1]: stop_words_list bad_words_list
    FP32[-1]: embedding_bias mrope_rotary_cos_sin
    FP32[-1,-1]: draft_logits
    FP16[-1,-1]: prompt_embedding_table encoder_input_features lora_weights
    UINT64[-1]: prompt_table_extra_ids
    BOOL[-1,-1]: cross_attention_mask
    INT64[1]: mrope_position_deltas
    INT32[-1,3]: lora_config
    UINT8[-1]: context_phase_params
    INT32[-1]: retention_token_range_starts retention_token_range_ends retention_token_range_priorities
    INT32[-1]: retention_token_range_durations_ms
    INT32[1]: retention_decode_priority retention_decode_duration_ms
    STRING[1]: guided_decoding_guide_type guided_decoding_guide
    INT32[1]: lookahead_window_size lookahead_ngram_size lookahead_verification_set_size
""")
NVIDIA_PREPROCESSING_INPUTS = table("""
    STRING[1]: QUERY DECODER_QUERY
    INT32[1]: REQUEST_OUTPUT_LEN END_ID PAD_ID
    STRING[-1]: BAD_WORDS_DICT STOP_WORDS_DICT EMBEDDING_BIAS_WORDS
    FP32[-1]: EMBEDDING_BIAS_WEIGHTS
    UINT64[1]: PROMPT_TABLE_EXTRA_ID
""")
NVIDIA_PREPROCESSING_OUTPUTS = table("""
    INT32[-1]: INPUT_ID REQUEST_OUTPUT_LEN
    INT32[1]: REQUEST_INPUT_LEN OUT_END_ID OUT_PAD_ID
    INT32[2,-1]: BAD_WORDS_IDS STOP_WORDS_IDS
""")
# An ensemble that lacks a required input answers with nothing at all, so its models check for themselves.
REQUIRED = {
    "ensemble": set(),
    "unary": set(),
    "preprocessing": set(),
    "tensorrt_llm": {"request_output_len"},
    "postprocessing": set(),
    "engine_info": set(),
}


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        ("ensemble", NVIDIA_ENSEMBLE_INPUTS, {"text_output": "STRING[-1]"} | NVIDIA_RESULTS),
        ("preprocessing", NVIDIA_PREPROCESSING_INPUTS, NVIDIA_PREPROCESSING_OUTPUTS),
        (
            "tensorrt_llm",
            NVIDIA_ENGINE_INPUTS,
            {"output_ids": "INT32[-1,-1]", "sequence_length": "INT32[-1]", "context_phase_params": "UINT8[-1]"}
            | NVIDIA_RESULTS
            | NVIDIA_REFUSED_RESULTS,
        ),
        (
            "postprocessing",
            {"TOKENS_BATCH": "INT32[-1,-1]", "SEQUENCE_LENGTH": "INT32[-1]"},
            {"OUTPUT": "STRING[-1]"},
        ),
    ],
)
def test_nvidias_tensors_are_all_there(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    config = load(model)
    assert inputs.items() <= signature(config.input).items()
    assert outputs.items() <= signature(config.output).items()


def test_the_ensemble_declares_no_output_that_it_always_refuses() -> None:
    """Triton goes through the mapped outputs for every response, filled or not: these twelve cost the server an eighth
    of its time. Asking for one is refused by name all the same, by Triton."""
    assert not NVIDIA_REFUSED_RESULTS.keys() & signature(load("ensemble").output).keys()


@pytest.mark.parametrize("model", MODELS)
def test_only_what_is_needed_is_required(model: str) -> None:
    assert {t.name for t in load(model).input if not t.optional} == REQUIRED[model]


@pytest.mark.parametrize("model", MODELS)
def test_one_instance_and_no_dynamic_batching(model: str) -> None:
    """Several detokenizers shuffle the tokens of a stream; dynamic batching hides cancels and aborts the server. Only
    the tokenizer, which keeps nothing, has two instances: a short prompt need not wait for a long one."""
    config = load(model)
    assert config.WhichOneof("scheduling_choice") in (None, "ensemble_scheduling")
    if model != "ensemble":
        count = 2 if model == "preprocessing" else 1
        groups = [(group.kind, group.count) for group in config.instance_group]
        assert groups == [(model_config_pb2.ModelInstanceGroup.KIND_CPU, count)]
    assert config.model_transaction_policy.decoupled == (model == "tensorrt_llm")


def test_unary_is_the_ensemble_without_streaming() -> None:
    ensemble, unary = load("ensemble"), load("unary")
    without_stream = {name: kind for name, kind in signature(ensemble.input).items() if name != "stream"}
    assert signature(unary.input) == without_stream
    assert signature(unary.output) == signature(ensemble.output)


def test_postprocessing_takes_outputs_of_the_engine_only() -> None:
    """Triton refuses an ensemble in which a step behind a decoupled model takes anything else."""
    steps = {step.model_name: step for step in load("ensemble").ensemble_scheduling.step}
    assert list(steps) == ["preprocessing", "tensorrt_llm", "postprocessing"]
    assert set(steps["postprocessing"].input_map.values()) <= set(steps["tensorrt_llm"].output_map.values())


def test_the_ensembles_maps_fit_its_models() -> None:
    ensemble = load("ensemble")
    produced = {t.name: kind for t, kind in zip(ensemble.input, signature(ensemble.input).values(), strict=True)}
    for step in ensemble.ensemble_scheduling.step:
        model = load(step.model_name)
        inputs, outputs = signature(model.input), signature(model.output)
        assert {t.name for t in model.input if not t.optional} <= set(step.input_map)
        for name, tensor in step.input_map.items():
            assert kind_and_rank(inputs[name]) == kind_and_rank(produced[tensor]), (step.model_name, name)
        produced |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
    assert not {t.name for t in ensemble.input} & {t.name for t in ensemble.output}, "Triton knows one tensor by a name"
    used = {tensor for step in ensemble.ensemble_scheduling.step for tensor in step.input_map.values()}
    assert {t.name for t in ensemble.input} <= used, "an input that nothing reads would be ignored"
    assert {t.name for t in ensemble.output} <= set(produced)


def kind_and_rank(signature: str) -> tuple[str, int]:
    kind, dims = signature.rstrip("]").split("[")
    return kind, dims.count(",")
