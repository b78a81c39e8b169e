"""Write the demo model in the published Mixtral file format."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.model import TinyMixtral
from demo_model.tokenizer import save_tokenizer, write_json


def published_tensors(model: TinyMixtral) -> dict[str, Tensor]:
    """The weights in bfloat16 under the names of the published checkpoints."""
    shape = model.shape
    out: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embed,
        "model.norm.weight": model.norm,
        "lm_head.weight": model.head,
    }
    sizes = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    for index, layer in enumerate(model.blocks()):
        base = f"model.layers.{index}"
        out[f"{base}.input_layernorm.weight"] = layer.norm1
        out[f"{base}.post_attention_layernorm.weight"] = layer.norm2
        for name, part in zip("qkv", torch.split(layer.qkv, [n * shape.head_dim for n in sizes]), strict=True):
            out[f"{base}.self_attn.{name}_proj.weight"] = part
        out[f"{base}.self_attn.o_proj.weight"] = layer.o
        out[f"{base}.block_sparse_moe.gate.weight"] = layer.moe.gate
        for e in range(shape.num_local_experts):
            expert = f"{base}.block_sparse_moe.experts.{e}"
            gate, up = layer.moe.w13[e].chunk(2)
            out[f"{expert}.w1.weight"], out[f"{expert}.w3.weight"] = gate, up
            out[f"{expert}.w2.weight"] = layer.moe.w2[e]
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in out.items()}


def config(model: TinyMixtral) -> dict[str, object]:
    shape = model.shape
    return {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "model_type": "mixtral",
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "num_local_experts": shape.num_local_experts,
        "output_router_logits": False,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def save_model(model: TinyMixtral, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all files; each replaces its predecessor at once, so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".snapshot-") as name:
        temporary = Path(name)
        save_file(published_tensors(model), temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config(model))
        write_json(
            temporary / "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
        )
        save_tokenizer(tokenizer, temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)
