"""The objects inside a checkpoint's `config.json`, with TensorRT-LLM 1.2.1's fields and defaults."""

from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """normalization_mode 1 is "renormalize": softmax in float32 over the selected top-k router logits."""

    num_experts: int
    top_k: int
    shared_expert_intermediate_size: int = 0
    normalization_mode: int = 1
    sparse_mixer_epsilon: float = 0.01
    tp_mode: int = 0
    device_limited_n_group: int = 0
    device_limited_topk_group: int = 0
    device_limited_routed_scaling_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """quant_algo: None (16-bit) or TensorRT-LLM's name, such as W8A16 for int8 weights with 16-bit activations."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    group_size: int = 128
    smoothquant_val: float = 0.5
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which GPUs share the work: world_size = tp_size of them in one tensor parallel group, experts included. -1 is
    convert_checkpoint's way of saying "as tp_size and cp_size"."""

    world_size: int = 1
    gpus_per_node: int = 8
    cp_size: int = 1
    tp_size: int = 1
    pp_size: int = 1
    moe_tp_size: int = 1
    moe_cluster_size: int = 1
    moe_ep_size: int = 1
    attn_tp_size: int = -1
    attn_cp_size: int = -1

    @classmethod
    def tensor_parallel(cls, tp_size: int) -> Self:
        return cls(world_size=tp_size, tp_size=tp_size, moe_tp_size=tp_size)


Part = TypeVar("Part", MoeConfig, QuantConfig, Mapping)


def read_part(part: type[Part], data: dict[str, Any]) -> Part:
    """Keys that other versions add are ignored, those that are left out have their defaults."""
    known = {f.name for f in fields(part)}
    return part(**{key: value for key, value in data.items() if key in known})
