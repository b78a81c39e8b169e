"""A checkpoint's `config.json`: TensorRT-LLM 1.2.1's fields for a Mixtral, and our own under the key `mixtral`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch

from mixtral_runtime.config_fields import (
    check_fixed,
    number,
    optional_text,
    positive_int,
    section,
    text,
)
from mixtral_runtime.config_parts import Mapping, MoeConfig, QuantConfig, read_part
from mixtral_runtime.errors import CheckpointError

FORMAT_VERSION = 1
ARCHITECTURE = "MixtralForCausalLM"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("plain", "sm80", "sm90")
MAX_HEAD_SIZE = 256  # TensorRT-LLM's attention kernels
AWQ_VOCAB_MULTIPLE = 64  # modelopt fills the vocabulary of AWQ checkpoints up with rows of zeros

# Fields of TensorRT-LLM that a Mixtral fixes. Any other value would change the arithmetic, so it is refused.
_FIXED: dict[str, Any] = {
    "hidden_act": "swiglu",
    "position_embedding_type": "rope_gpt_neox",
    "rotary_scaling": None,
    "tie_word_embeddings": False,
    "mlp_bias": False,
    "attn_bias": False,
    "qk_layernorm": False,
    "residual_mlp": False,
    "fc_after_embed": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}
# Fields of TensorRT-LLM that steer its builder only; written with convert_checkpoint's values, read with any value.
_BUILDER: dict[str, Any] = {
    "logits_dtype": "float32",
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
    "has_partial_lora_mask": False,
    "layer_idx_offset": 0,
    "runtime_defaults": None,
}


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The model's dimensions and how its weights are stored.

    head_size need not be hidden_size / num_attention_heads. layout: how int8 weights are laid out (None for 16-bit).
    source: fingerprint of the Hugging Face model, None when another tool wrote the checkpoint.
    """

    dtype: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    norm_epsilon: float
    rotary_base: float
    max_position_embeddings: int
    moe: MoeConfig
    quantization: QuantConfig = field(default_factory=QuantConfig)
    mapping: Mapping = field(default_factory=Mapping)
    architecture: str = ARCHITECTURE
    layout: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def kv_cache_dtype(self) -> str:
        """The name of the dtype, or "fp8"."""
        return self.dtype if self.quantization.kv_cache_quant_algo is None else "fp8"

    @property
    def uses_fp8(self) -> bool:
        """In the weights or in the KV cache."""
        return "FP8" in (self.quantization.quant_algo, self.quantization.kv_cache_quant_algo)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of lm_head in the checkpoint; TensorRT-LLM knows this number only."""
        if self.quantization.quant_algo != "W4A16_AWQ":
            return self.vocab_size
        return -(-self.vocab_size // AWQ_VOCAB_MULTIPLE) * AWQ_VOCAB_MULTIPLE

    def to_json(self) -> dict[str, Any]:
        """Every field of TensorRT-LLM 1.2.1's LLaMA-family config, ready for `json.dump`."""
        data = asdict(self)
        own = {"format_version": FORMAT_VERSION, "layout": data.pop("layout"), "source": data.pop("source")}
        if self.padded_vocab_size != self.vocab_size:
            data["vocab_size"], own["vocab_size"] = self.padded_vocab_size, self.vocab_size
        nested = {key: data.pop(key) for key in ("moe", "quantization", "mapping")}
        architecture = {"architecture": data.pop("architecture")}
        return (architecture | data | {"rotary_embedding_dim": self.head_size} | _FIXED | _BUILDER | nested) | {
            "mixtral": own
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Reads what `to_json`, convert_checkpoint or modelopt wrote; keys that none of our values come from are
        ignored, as TensorRT-LLM does. Raises CheckpointError naming the field and its value."""
        check_architecture(data.get("architecture"))
        check_fixed(data, _FIXED)
        head_size = positive_int(data, "head_size")
        check_fixed(data, {"rotary_embedding_dim": head_size})
        quantization = read_part(QuantConfig, data.get("quantization") or {})
        layout, source = _read_own(data, quantized_int8=quantization.quant_algo == "W8A16")
        return cls(
            dtype=text(data, "dtype"),
            vocab_size=_vocab_size(data),
            hidden_size=positive_int(data, "hidden_size"),
            intermediate_size=positive_int(data, "intermediate_size"),
            num_hidden_layers=positive_int(data, "num_hidden_layers"),
            num_attention_heads=positive_int(data, "num_attention_heads"),
            num_key_value_heads=positive_int(data, "num_key_value_heads"),
            head_size=head_size,
            norm_epsilon=number(data, "norm_epsilon"),
            rotary_base=number(data, "rotary_base"),
            max_position_embeddings=positive_int(data, "max_position_embeddings"),
            moe=_read_moe(data),
            quantization=quantization,
            mapping=read_part(Mapping, data.get("mapping") or {}),
            layout=layout,
            source=source,
        )

    @classmethod
    def from_hf(cls, data: dict[str, Any], dtype: str | None = None) -> Self:
        """The unquantised config of a Hugging Face `config.json`, written by transformers 4.57 or 5.x.

        dtype: None takes the model's own; a float32 model becomes float16, as in convert_checkpoint.
        """
        check_architecture((data.get("architectures") or [None])[0])
        check_fixed(data, {"hidden_act": "silu", "tie_word_embeddings": False})
        max_position_embeddings = positive_int(data, "max_position_embeddings")
        _check_sliding_window(data.get("sliding_window"), max_position_embeddings)
        heads = positive_int(data, "num_attention_heads")
        hidden_size = positive_int(data, "hidden_size")
        own_dtype = data.get("dtype") or data.get("torch_dtype") or "float32"
        return cls(
            dtype=dtype or ("float16" if own_dtype == "float32" else own_dtype),
            vocab_size=positive_int(data, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=positive_int(data, "intermediate_size"),
            num_hidden_layers=positive_int(data, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=positive_int(data, "num_key_value_heads"),
            head_size=positive_int(data, "head_dim") if data.get("head_dim") else hidden_size // heads,
            norm_epsilon=number(data, "rms_norm_eps"),
            rotary_base=_rotary_base(data),
            max_position_embeddings=max_position_embeddings,
            moe=MoeConfig(positive_int(data, "num_local_experts"), positive_int(data, "num_experts_per_tok")),
        )


def check_architecture(architecture: object) -> None:
    if architecture != ARCHITECTURE:
        raise CheckpointError(f"the architecture is {architecture}, only {ARCHITECTURE} is supported")


def _check(config: CheckpointConfig) -> None:
    if config.dtype not in DTYPES:
        raise CheckpointError(f"dtype is {config.dtype}, it must be one of {', '.join(DTYPES)}")
    if config.head_size % 2 or config.head_size > MAX_HEAD_SIZE:
        raise CheckpointError(f"head_size is {config.head_size}, it must be even and at most {MAX_HEAD_SIZE}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"num_attention_heads is {config.num_attention_heads}, "
            f"it must be a multiple of num_key_value_heads, which is {config.num_key_value_heads}"
        )
    if config.moe.top_k > config.moe.num_experts:
        raise CheckpointError(f"moe.top_k is {config.moe.top_k}, there are {config.moe.num_experts} experts")
    if (algorithm := config.quantization.kv_cache_quant_algo) not in (None, "FP8"):
        raise CheckpointError(f"kv_cache_quant_algo is {algorithm}, only FP8 or none is supported")
    _check_mapping(config)


def _check_mapping(config: CheckpointConfig) -> None:
    mapping, tp_size = config.mapping, config.mapping.tp_size
    for name in ("pp_size", "cp_size", "moe_ep_size"):
        if (size := getattr(mapping, name)) not in (1, -1):
            raise CheckpointError(f"mapping.{name} is {size}, only 1 is supported")
    if mapping.world_size != tp_size or tp_size < 1:
        raise CheckpointError(f"mapping.world_size is {mapping.world_size}, it must be tp_size, which is {tp_size}")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (size := getattr(config, name)) % tp_size:
            raise CheckpointError(f"tp_size is {tp_size}, it must divide {name}, which is {size}")


def _check_sliding_window(window: int | None, max_position_embeddings: int) -> None:
    if window is not None and window < max_position_embeddings:
        raise CheckpointError(f"sliding_window is {window}, only full attention is supported")


def _rotary_base(data: dict[str, Any]) -> float:
    """`rope_theta` at the top level (transformers 4.57) or within `rope_parameters` (5.x)."""
    parameters = data.get("rope_parameters") or data.get("rope_scaling") or {}
    rope_type = parameters.get("rope_type", "default")
    if rope_type != "default":
        raise CheckpointError(f"rope_type is {rope_type}, only default is supported")
    return number(parameters if "rope_theta" in parameters else data, "rope_theta")


def _vocab_size(data: dict[str, Any]) -> int:
    """Ours where it is not the padded one."""
    own = section(data, "mixtral") if "mixtral" in data else {}
    return positive_int(own if "vocab_size" in own else data, "vocab_size")


def _read_moe(data: dict[str, Any]) -> MoeConfig:
    # Checkpoints of older converters have flat keys instead of the object.
    moe = (
        section(data, "moe")
        if "moe" in data
        else {
            "num_experts": data.get("moe_num_experts"),
            "top_k": data.get("moe_top_k"),
            "normalization_mode": data.get("moe_normalization_mode", 1),
        }
    )
    check_fixed(moe, {"shared_expert_intermediate_size": 0, "normalization_mode": 1})
    positive_int(moe, "num_experts")
    positive_int(moe, "top_k")
    return read_part(MoeConfig, moe)


def _read_own(data: dict[str, Any], *, quantized_int8: bool) -> tuple[str | None, str | None]:
    own = section(data, "mixtral") if "mixtral" in data else {}
    check_fixed(own, {"format_version": FORMAT_VERSION})
    layout = optional_text(own, "layout")
    if quantized_int8 and layout not in LAYOUTS:
        raise CheckpointError(
            f"mixtral.layout is {layout}, a W8A16 checkpoint needs one of {', '.join(LAYOUTS)} "
            f"(sm80 when NVIDIA's converter wrote it on an A100, sm90 on an H100)"
        )
    if not quantized_int8 and layout is not None:
        raise CheckpointError(f"mixtral.layout is {layout}, only a W8A16 checkpoint has one")
    return layout, optional_text(own, "source")
