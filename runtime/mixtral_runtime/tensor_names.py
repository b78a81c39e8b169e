"""TensorRT-LLM's tensor names and shapes for a Mixtral, and the Hugging Face tensors that each is made of."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import Format, TensorSpec, get_format


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight before quantisation.

    shape: [n], [out, in] or [experts, out, in]. parts: for each expert (once for other weights) the Hugging Face
    tensors whose rows follow each other in it, each with its own shape. quantized: whether the format replaces it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[tuple[TensorSpec, ...], ...]
    quantized: bool = False

    @property
    def stacked(self) -> bool:
        return len(self.shape) == 3


def weights(config: CheckpointConfig) -> Iterator[Weight]:
    """In the order of the forward pass. Source: tensorrt_llm/models/llama/convert.py and models/modeling_utils.py."""
    vocabulary = (config.vocab_size, config.hidden_size)
    dtype = config.torch_dtype
    yield _single(dtype, "transformer.vocab_embedding.weight", "model.embed_tokens.weight", vocabulary)
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, f"transformer.layers.{layer}.", f"model.layers.{layer}.")
    yield _single(dtype, "transformer.ln_f.weight", "model.norm.weight", (config.hidden_size,))
    yield _single(dtype, "lm_head.weight", "lm_head.weight", vocabulary)


def checkpoint_format(config: CheckpointConfig) -> Format:
    """Raises InvalidArgument for a quant_algo that no format of ours has."""
    return get_format(config.quantization.quant_algo, config.layout)


def weight_specs(weight: Weight, weight_format: Format) -> list[TensorSpec]:
    """The tensors of the checkpoint that hold this weight."""
    if weight.quantized:
        return weight_format.specs(weight.name, weight.shape, weight.dtype)
    return [TensorSpec(weight.name, weight.shape, weight.dtype)]


def expected_specs(config: CheckpointConfig) -> list[TensorSpec]:
    """Every tensor of a checkpoint with this config; nothing is allocated."""
    weight_format = checkpoint_format(config)
    return [spec for weight in weights(config) for spec in weight_specs(weight, weight_format)]


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
    yield Weight(f"{ours}attention.qkv.weight", (queries + 2 * keys, hidden), dtype, (qkv,), quantized=True)
    dense = (part(f"{attention}o_proj.weight", hidden, queries),)
    yield Weight(f"{ours}attention.dense.weight", (hidden, queries), dtype, (dense,), quantized=True)
    yield _single(dtype, f"{ours}post_layernorm.weight", f"{theirs}post_attention_layernorm.weight", (hidden,))
    # TensorRT-LLM routes in float32, whatever the model's dtype.
    yield _single(torch.float32, f"{ours}mlp.router.weight", f"{moe}gate.weight", (experts, hidden))
    # Up projection (w3) first, gate (w1) second: the gated activation applies to the second half.
    up_gate = tuple(
        tuple(part(f"{moe}experts.{expert}.{which}.weight", inner, hidden) for which in ("w3", "w1"))
        for expert in range(experts)
    )
    yield Weight(f"{ours}mlp.fc.weight", (experts, 2 * inner, hidden), dtype, up_gate, quantized=True)
    down = tuple((part(f"{moe}experts.{expert}.w2.weight", hidden, inner),) for expert in range(experts))
    yield Weight(f"{ours}mlp.proj.weight", (experts, hidden, inner), dtype, down, quantized=True)


def _single(dtype: torch.dtype, ours: str, theirs: str, shape: tuple[int, ...]) -> Weight:
    return Weight(ours, shape, dtype, ((TensorSpec(theirs, shape, dtype),),))
