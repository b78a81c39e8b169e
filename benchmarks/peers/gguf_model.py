"""Writes a Hugging Face Mixtral as a GGUF file in Q8_0, the 8-bit format of llama.cpp: blocks of 32 weights along a
row, each with a 16-bit scale.

Names, metadata and the order of rotary rows are those of llama.cpp's `llama` architecture. Matrices are quantised,
embedding and lm_head too; norms and the router stay in 32 bits, as llama.cpp's own converter has it. The file has no
tokenizer: it is for prompts of token ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import TensorSpec

Q8_0 = gguf.GGMLQuantizationType.Q8_0
BLOCK = 32
ARCHITECTURE = "llama"  # Mixtral is a llama with experts to llama.cpp


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file. parts: the Hugging Face tensors stacked in it, one for all but experts. rotary_heads:
    heads whose rows change places, 0 for none. quantized: Q8_0, else float32."""

    name: str
    parts: tuple[TensorSpec, ...]
    quantized: bool = True
    rotary_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        stack = (len(self.parts),) if len(self.parts) > 1 else ()
        return (*stack, *self.parts[0].shape)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """In elements of the stored dtype: bytes for a quantised tensor."""
        return tuple(quant_shape_to_byte_shape(self.shape, Q8_0)) if self.quantized else self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.quantized else np.float32)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored_shape)) * self.dtype.itemsize

    def read(self, model: HfCheckpoint) -> "np.ndarray[Any, Any]":
        """The tensor as it is stored, one part in 32 bits at a time."""
        rows = [self._stored(model.tensor(part)) for part in self.parts]
        return np.stack(rows) if len(rows) > 1 else rows[0]

    def _stored(self, weight: Tensor) -> "np.ndarray[Any, Any]":
        if self.rotary_heads:
            weight = interleave_halves(weight, self.rotary_heads)
        values = weight.float().contiguous().numpy()
        return quantize(values, Q8_0) if self.quantized else values


def interleave_halves(weight: Tensor, heads: int) -> Tensor:
    """[heads * size, in] → the same. Hugging Face rotates row i of a head with row i + size/2, llama.cpp rotates
    neighbours, so the two halves of each head's rows are interleaved."""
    rows, inputs = weight.shape
    return weight.view(heads, 2, rows // heads // 2, inputs).transpose(1, 2).reshape(rows, inputs)


def tensors(config: CheckpointConfig) -> Iterator[GgufTensor]:
    """All tensors of the file, in its order. Raises InvalidArgument when rows are not whole blocks."""
    hidden, inner = config.hidden_size, config.intermediate_size
    for name, width in (("hidden_size", hidden), ("intermediate_size", inner)):
        if width % BLOCK:
            raise InvalidArgument(f"{name} is {width}, Q8_0 needs a multiple of {BLOCK}")

    def spec(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(f"{name}.weight", shape, config.torch_dtype)

    yield GgufTensor("token_embd.weight", (spec("model.embed_tokens", config.vocab_size, hidden),))
    for layer in range(config.num_hidden_layers):
        yield from _layer(config, f"blk.{layer}.", f"model.layers.{layer}.")
    yield GgufTensor("output_norm.weight", (spec("model.norm", hidden),), quantized=False)
    yield GgufTensor("output.weight", (spec("lm_head", config.vocab_size, hidden),))


def _layer(config: CheckpointConfig, ours: str, theirs: str) -> Iterator[GgufTensor]:
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.moe.num_experts
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    queries, keys = heads * config.head_size, key_heads * config.head_size

    def part(name: str, *shape: int) -> tuple[TensorSpec]:
        return (TensorSpec(f"{theirs}{name}.weight", shape, config.torch_dtype),)

    def stack(name: str, *shape: int) -> tuple[TensorSpec, ...]:
        return tuple(part(f"block_sparse_moe.experts.{e}.{name}", *shape)[0] for e in range(experts))

    yield GgufTensor(f"{ours}attn_norm.weight", part("input_layernorm", hidden), quantized=False)
    yield GgufTensor(f"{ours}attn_q.weight", part("self_attn.q_proj", queries, hidden), rotary_heads=heads)
    yield GgufTensor(f"{ours}attn_k.weight", part("self_attn.k_proj", keys, hidden), rotary_heads=key_heads)
    yield GgufTensor(f"{ours}attn_v.weight", part("self_attn.v_proj", keys, hidden))
    yield GgufTensor(f"{ours}attn_output.weight", part("self_attn.o_proj", hidden, queries))
    yield GgufTensor(f"{ours}ffn_norm.weight", part("post_attention_layernorm", hidden), quantized=False)
    yield GgufTensor(f"{ours}ffn_gate_inp.weight", part("block_sparse_moe.gate", experts, hidden), quantized=False)
    yield GgufTensor(f"{ours}ffn_gate_exps.weight", stack("w1", inner, hidden))
    yield GgufTensor(f"{ours}ffn_down_exps.weight", stack("w2", hidden, inner))
    yield GgufTensor(f"{ours}ffn_up_exps.weight", stack("w3", inner, hidden))


def write(model_dir: Path, path: Path) -> None:
    """Writes the file, one tensor in memory at a time. Raises CheckpointError and InvalidArgument."""
    model = HfCheckpoint.open(model_dir)
    config = CheckpointConfig.from_hf(model.config, "bfloat16")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _write_metadata(writer, config, model_dir.name)
    order = list(tensors(config))
    for tensor in order:
        raw = Q8_0 if tensor.quantized else None
        writer.add_tensor_info(tensor.name, tensor.stored_shape, tensor.dtype, tensor.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with torch.inference_mode():
        for tensor in order:
            writer.write_tensor_data(tensor.read(model))
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, config: CheckpointConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rotary_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_expert_count(config.moe.num_experts)
    writer.add_expert_used_count(config.moe.top_k)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
