"""Names, shapes, dtypes and config.json of a checkpoint are TensorRT-LLM 1.2.1's, here for Mixtral-8x7B itself."""

import json
from typing import Any

import pytest
import torch

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.tensor_names import expected_specs, weights

# config.json of mistralai/Mixtral-8x7B-Instruct-v0.1, as transformers up to 4.57 writes it.
HF_CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def config_8x7b(layout: str | None, dtype: str = "float16") -> CheckpointConfig:
    data = CheckpointConfig.from_hf(HF_CONFIG, dtype).to_json()
    data["quantization"]["quant_algo"] = None if layout is None else "W8A16"
    data["mixtral"]["layout"] = layout
    return CheckpointConfig.from_json(data)


def layer_specs(layout: str | None, layer: int) -> dict[str, TensorSpec]:
    prefix = f"transformer.layers.{layer}."
    found = {spec.name: spec for spec in expected_specs(config_8x7b(layout)) if spec.name.startswith(prefix)}
    return {name.removeprefix(prefix): spec for name, spec in found.items()}


def shapes(specs: dict[str, TensorSpec]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (spec.shape, spec.dtype) for name, spec in specs.items()}


HALF, INT8 = torch.float16, torch.int8
UNQUANTISED_PARTS = {
    "input_layernorm.weight": ((4096,), HALF),
    "post_layernorm.weight": ((4096,), HALF),
    "mlp.router.weight": ((8, 4096), torch.float32),
}
SCALES = {
    "attention.qkv.per_channel_scale": ((6144,), HALF),
    "attention.dense.per_channel_scale": ((4096,), HALF),
    "mlp.fc.per_channel_scale": ((8, 28672), HALF),
    "mlp.proj.per_channel_scale": ((8, 4096), HALF),
}


def test_a_16_bit_layer_has_tensorrt_llms_tensors() -> None:
    assert shapes(layer_specs(None, 31)) == UNQUANTISED_PARTS | {
        "attention.qkv.weight": ((6144, 4096), HALF),
        "attention.dense.weight": ((4096, 4096), HALF),
        "mlp.fc.weight": ((8, 28672, 4096), HALF),
        "mlp.proj.weight": ((8, 4096, 14336), HALF),
    }


@pytest.mark.parametrize("layout", ["sm80", "sm90"])
def test_an_int8_layer_in_a_kernel_layout_has_tensorrt_llms_tensors(layout: str) -> None:
    assert shapes(layer_specs(layout, 0)) == UNQUANTISED_PARTS | SCALES | {
        "attention.qkv.weight": ((4096, 6144), INT8),
        "attention.dense.weight": ((4096, 4096), INT8),
        "mlp.fc.weight": ((8, 4096, 28672), INT8),
        "mlp.proj.weight": ((8, 14336, 4096), INT8),
    }


def test_a_plain_int8_layer_keeps_rows_as_they_are() -> None:
    assert shapes(layer_specs("plain", 0)) == UNQUANTISED_PARTS | SCALES | {
        "attention.qkv.weight": ((6144, 4096), INT8),
        "attention.dense.weight": ((4096, 4096), INT8),
        "mlp.fc.weight": ((8, 28672, 4096), INT8),
        "mlp.proj.weight": ((8, 4096, 14336), INT8),
    }


def test_outside_the_layers_nothing_is_quantised() -> None:
    outside = [spec for spec in expected_specs(config_8x7b("sm80")) if ".layers." not in spec.name]
    assert outside == [
        TensorSpec("transformer.vocab_embedding.weight", (32000, 4096), HALF),
        TensorSpec("transformer.ln_f.weight", (4096,), HALF),
        TensorSpec("lm_head.weight", (32000, 4096), HALF),
    ]


def test_the_parameters_are_those_of_mixtral_8x7b() -> None:
    assert sum(torch.Size(weight.shape).numel() for weight in weights(config_8x7b(None))) == 46_702_792_704


def test_config_json_has_every_field_with_its_mixtral_value() -> None:
    data = config_8x7b("sm80").to_json()
    assert data.pop("mixtral") == {"format_version": 1, "layout": "sm80", "source": None}
    assert data.pop("moe") == {
        "num_experts": 8,
        "shared_expert_intermediate_size": 0,
        "top_k": 2,
        "normalization_mode": 1,
        "sparse_mixer_epsilon": 0.01,
        "tp_mode": 0,
        "device_limited_n_group": 0,
        "device_limited_topk_group": 0,
        "device_limited_routed_scaling_factor": 1.0,
    }
    assert data.pop("quantization") == {
        "quant_algo": "W8A16",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": False,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": None,
    }
    assert data.pop("mapping") == {
        "world_size": 1,
        "gpus_per_node": 8,
        "cp_size": 1,
        "tp_size": 1,
        "pp_size": 1,
        "moe_tp_size": 1,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "attn_tp_size": -1,
        "attn_cp_size": -1,
    }
    assert data == {
        "architecture": "MixtralForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_size": 128,
        "hidden_act": "swiglu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 32768,
        "rotary_base": 1e6,
        "rotary_scaling": None,
        "rotary_embedding_dim": 128,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": False,
        "mlp_bias": False,
        "attn_bias": False,
        "qk_layernorm": False,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "remove_duplicated_kv_heads": False,
        "fc_after_embed": False,
        "has_partial_lora_mask": False,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "layer_idx_offset": 0,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "output_multiplier_scale": 1.0,
        "runtime_defaults": None,
    }


@pytest.mark.parametrize("layout", [None, "plain", "sm80", "sm90"])
def test_config_json_reads_back_as_it_was(layout: str | None) -> None:
    config = config_8x7b(layout)
    assert CheckpointConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_config_of_transformers_5_gives_the_same() -> None:
    newer = dict(HF_CONFIG, dtype="bfloat16", rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, head_dim=128)
    del newer["torch_dtype"], newer["rope_theta"]
    assert CheckpointConfig.from_hf(newer) == CheckpointConfig.from_hf(HF_CONFIG)


def test_the_head_size_need_not_be_derived() -> None:
    assert CheckpointConfig.from_hf(HF_CONFIG).head_size == 128
    assert CheckpointConfig.from_hf(HF_CONFIG | {"head_dim": 64}).head_size == 64


@pytest.mark.parametrize(
    ("own", "asked", "dtype"),
    [("bfloat16", None, "bfloat16"), ("float32", None, "float16"), ("float32", "bfloat16", "bfloat16")],
)
def test_the_dtype_is_the_models_unless_asked_and_float32_becomes_float16(
    own: str, asked: str | None, dtype: str
) -> None:
    assert CheckpointConfig.from_hf(HF_CONFIG | {"torch_dtype": own}, asked).dtype == dtype


def test_what_modelopt_and_newer_versions_add_is_ignored() -> None:
    data = config_8x7b(None).to_json()
    del data["mixtral"]
    data |= {
        "producer": {"name": "modelopt", "version": "0.37.0"},
        "decoder": "llama",
        "rank": 0,
        "rmsnorm": True,
        "bias": False,
        "lm_head_bias": False,
        "rotary_pct": 1.0,
        "share_embedding_table": False,
        "model_type": "mixtral",
        "logits_dtype": "float16",
        "use_parallel_embedding": True,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1, "enable_attention_dp": False},
    }
    data["quantization"]["exclude_modules"] = ["lm_head", "transformer.layers.0.mlp.router"]
    config = CheckpointConfig.from_json(data)
    assert config.quantization.exclude_modules == ["lm_head", "transformer.layers.0.mlp.router"]
    assert config.hidden_size == 4096


def test_flat_keys_of_older_converters_describe_the_experts() -> None:
    data = config_8x7b(None).to_json()
    del data["moe"]
    data |= {"moe_num_experts": 8, "moe_top_k": 2, "moe_normalization_mode": 1}
    assert CheckpointConfig.from_json(data) == config_8x7b(None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architecture is MistralForCausalLM, only MixtralForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "architecture is LlamaForCausalLM"),
        ({"architectures": None}, "architecture is None"),
        ({"hidden_size": "4096"}, "hidden_size is 4096, it must be a whole number"),
        ({"head_dim": 127}, "head_size is 127, it must be even and at most 256"),
        ({"head_dim": 512}, "head_size is 512"),
        ({"num_key_value_heads": 5}, "num_attention_heads is 32, it must be a multiple of num_key_value_heads"),
        ({"num_experts_per_tok": 9}, "top_k is 9, there are 8 experts"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, only silu"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype is float8_e4m3fn, it must be one of float16, bfloat16"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type is yarn, only default"),
        ({"rope_theta": None}, "rope_theta is None"),
    ],
)
def test_a_hugging_face_model_that_is_no_mixtral_is_refused_by_field_and_value(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        CheckpointConfig.from_hf(HF_CONFIG | change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "LlamaForCausalLM"}, "architecture is LlamaForCausalLM, only MixtralForCausalLM"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is alibi, only rope_gpt_neox"),
        ({"attention_multiplier": 2.0}, "attention_multiplier is 2.0"),
        ({"mapping": {"world_size": 2, "pp_size": 2}}, "mapping.pp_size is 2, only 1"),
        ({"mapping": {"world_size": 2, "tp_size": 2, "moe_ep_size": 2}}, "mapping.moe_ep_size is 2, only 1"),
        ({"mapping": {"world_size": 4, "tp_size": 2}}, "mapping.world_size is 4, it must be tp_size, which is 2"),
        ({"mapping": {"world_size": 16, "tp_size": 16}}, "tp_size is 16, it must divide num_key_value_heads"),
        ({"moe": {"num_experts": 8, "top_k": 2, "normalization_mode": 2}}, "normalization_mode is 2, only 1"),
        ({"mixtral": {"format_version": 2}}, "format_version is 2, only 1"),
        ({"mixtral": {}}, "layout is None, a W8A16 checkpoint needs one of plain, sm80, sm90"),
        ({"quantization": {"quant_algo": None}}, "layout is sm80, only a W8A16 checkpoint has one"),
        ({"rotary_embedding_dim": 64}, "rotary_embedding_dim is 64, only 128"),
        ({"norm_epsilon": None}, "norm_epsilon is None"),
    ],
)
def test_a_checkpoint_config_that_means_other_arithmetic_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        CheckpointConfig.from_json(config_8x7b("sm80").to_json() | change)
