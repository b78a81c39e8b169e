"""transformers' Mixtral, as the reference for ours."""

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.tensor_names import checkpoint_format, weights


def reference_model(checkpoint: Checkpoint) -> Any:
    """transformers' model in float32, with the weights that the checkpoint stands for."""
    config = checkpoint.config
    dequantised: dict[str, torch.Tensor] = {}
    for weight in weights(config):
        for index, parts in enumerate(weight.parts):
            matrix = dequantise(checkpoint, weight.name, index if weight.stacked else None, weight.quantized)
            rows = torch.split(matrix, [part.shape[0] for part in parts])
            dequantised |= {part.name: piece for part, piece in zip(parts, rows, strict=True)}
    return MixtralForCausalLM.from_pretrained(
        None, config=hugging_face_config(config), state_dict=dequantised, dtype=torch.float32
    ).eval()


def dequantise(checkpoint: Checkpoint, name: str, expert: int | None, quantized: bool) -> torch.Tensor:
    if not quantized:
        return checkpoint.tensor(name).float()
    stem = name.removesuffix("weight")
    tensors = {n.removeprefix(stem): checkpoint.tensor(n) for n in checkpoint.names() if n.startswith(stem)}
    if expert is not None:
        tensors = {suffix: tensor[expert] for suffix, tensor in tensors.items()}
    return checkpoint_format(checkpoint.config).linear(tensors, torch.float32).dequantize(torch.float32)


def hugging_face_config(config: CheckpointConfig) -> MixtralConfig:
    return MixtralConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_size,
        num_local_experts=config.moe.num_experts,
        num_experts_per_tok=config.moe.top_k,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.norm_epsilon,
        rope_theta=config.rotary_base,
        tie_word_embeddings=False,
    )
