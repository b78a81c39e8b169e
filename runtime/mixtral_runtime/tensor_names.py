"""TensorRT-LLM's tensor names and shapes for a Mixtral, and the Hugging Face tensors that each is made of."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import Format, TensorSpec, get_format
from mixtral_runtime.tensor_parallel import Split

KV_SCALE = "kv_cache_scaling_factor"
KV_RECIPROCAL_SCALE = "kv_cache_rcp_scaling_factor"


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight before quantisation.

    shape: [n], [out, in] or [experts, out, in]. parts: for each expert (once for other weights) the Hugging Face
    tensors whose rows follow each other in it, each with its own shape; where they are fewer than the weight's (a
    padded vocabulary), rows of zeros follow. quantized: whether the format replaces it. split: how it is divided among
    the ranks. kv_scales: with attention.qkv, the scale of the layer's FP8 KV cache (what one unit of it stands for) and
    its reciprocal, whatever the weights' format.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[tuple[TensorSpec, ...], ...]
    quantized: bool = False
    split: Split = Split.REPLICATED
    kv_scales: tuple[TensorSpec, ...] = ()

    @property
    def stacked(self) -> bool:
        return len(self.shape) == 3


def weights(config: CheckpointConfig) -> Iterator[Weight]:
    """In the order of the forward pass. Source: tensorrt_llm/models/llama/convert.py and models/modeling_utils.py."""
    vocabulary, padded = ((size, config.hidden_size) for size in (config.vocab_size, config.padded_vocab_size))
    dtype = config.torch_dtype
    embedding = TensorSpec("model.embed_tokens.weight", vocabulary, dtype)
    yield Weight("transformer.vocab_embedding.weight", padded, dtype, ((embedding,),))
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, f"transformer.layers.{layer}.", f"model.layers.{layer}.")
    yield _single(dtype, "transformer.ln_f.weight", "model.norm.weight", (config.hidden_size,))
    # The embedding is not divided (use_parallel_embedding is false), the logits are.
    lm_head = TensorSpec("lm_head.weight", vocabulary, dtype)
    yield Weight("lm_head.weight", padded, dtype, ((lm_head,),), split=Split.COLUMN)


def checkpoint_format(config: CheckpointConfig) -> Format:
    """Raises InvalidArgument for a quant_algo that no format of ours has."""
    return get_format(config.quantization.quant_algo, config.layout)


def weight_specs(weight: Weight, weight_format: Format, tp_size: int = 1) -> list[TensorSpec]:
    """The tensors that hold this weight in the file of each of `tp_size` ranks."""
    shape = weight.split.rank_shape(weight.shape, tp_size)
    if weight.quantized:
        return [*weight_format.specs(weight.name, shape, weight.dtype), *weight.kv_scales]
    return [TensorSpec(weight.name, shape, weight.dtype)]


def expected_specs(config: CheckpointConfig) -> list[TensorSpec]:
    """Every tensor of a checkpoint with this config, in each rank's file; nothing is allocated."""
    weight_format, tp_size = checkpoint_format(config), config.mapping.tp_size
    return [spec for weight in weights(config) for spec in weight_specs(weight, weight_format, tp_size)]


def _layer(config: CheckpointConfig, ours: str, theirs: str) -> Iterator[Weight]:
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.moe.num_experts
    queries, keys = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    dtype, attention, moe = config.torch_dtype, f"{theirs}self_attn.", f"{theirs}block_sparse_moe."

    def part(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, shape, dtype)

    yield _single(dtype, f"{ours}input_layernorm.weight", f"{theirs}input_layernorm.weight", (hidden,))
    qkv = tuple(
        part(f"{attention}{which}_proj.weight", rows, hidden)
        for which, rows in (("q", queries), ("k", keys), ("v", keys))
    )
    kv_scales = tuple(
        TensorSpec(f"{ours}attention.{name}", (1,), torch.float32)
        for name in (KV_SCALE, KV_RECIPROCAL_SCALE)
        if config.quantization.kv_cache_quant_algo is not None
    )
    shape = (queries + 2 * keys, hidden)
    yield Weight(f"{ours}attention.qkv.weight", shape, dtype, (qkv,), True, Split.COLUMN, kv_scales)
    dense = (part(f"{attention}o_proj.weight", hidden, queries),)
    yield Weight(f"{ours}attention.dense.weight", (hidden, queries), dtype, (dense,), True, Split.ROW)
    yield _single(dtype, f"{ours}post_layernorm.weight", f"{theirs}post_attention_layernorm.weight", (hidden,))
    # TensorRT-LLM routes in float32, whatever the model's dtype.
    yield _single(torch.float32, f"{ours}mlp.router.weight", f"{moe}gate.weight", (experts, hidden))
    # Up projection (w3) first, gate (w1) second: the gated activation applies to the second half.
    up_gate = tuple(
        tuple(part(f"{moe}experts.{expert}.{which}.weight", inner, hidden) for which in ("w3", "w1"))
        for expert in range(experts)
    )
    yield Weight(f"{ours}mlp.fc.weight", (experts, 2 * inner, hidden), dtype, up_gate, True, Split.COLUMN)
    down = tuple((part(f"{moe}experts.{expert}.w2.weight", hidden, inner),) for expert in range(experts))
    yield Weight(f"{ours}mlp.proj.weight", (experts, hidden, inner), dtype, down, True, Split.ROW)


def _single(dtype: torch.dtype, ours: str, theirs: str, shape: tuple[int, ...]) -> Weight:
    return Weight(ours, shape, dtype, ((TensorSpec(theirs, shape, dtype),),))
