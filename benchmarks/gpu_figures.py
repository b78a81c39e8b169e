"""What a step must read and multiply: the yardsticks of a measured time."""

from collections.abc import Sequence
from unittest import mock

import torch
from step_bytes import experts_met, step_bytes
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.plan import model_size, prefill_flop
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tensor_names import checkpoint_format

ROUTED_TOKENS = 512  # whose experts are counted


def decode_bytes(config: CheckpointConfig, batch: int, context: float, met: float | None = None) -> float:
    """Weights and KV cache that one decode step of `batch` sequences with `context` tokens each reads. met: experts of
    a layer that they need together, None for what tokens that choose at random need."""
    weights = step_bytes(config, checkpoint_format(config).name, batch, met)
    return weights + batch * context * model_size(config).kv_bytes_per_token


def prompt_flop(config: CheckpointConfig, tokens: int) -> float:
    """Multiplications and additions of a prompt, lm_head at its last token alone."""
    lm_head = 2 * config.vocab_size * config.hidden_size
    return prefill_flop(config, model_size(config), tokens) - lm_head * (tokens - 1)


@torch.inference_mode()
def measured_experts(model: MixtralModel, batches: Sequence[int]) -> dict[int, float]:
    """How many experts of a layer `batch` tokens really need together, on average over all layers, by batch."""
    config = model.config
    tokens = min(ROUTED_TOKENS, config.max_position_embeddings)
    ids = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(0))[:tokens].tolist()
    chosen: list[Tensor] = []
    call = Experts.__call__

    def recorded(self: Experts, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        chosen.append(experts)
        return call(self, x, experts, weights)

    cache = model.new_cache(len(ids))
    builder = BatchBuilder()
    for block, token in enumerate(ids):
        builder.add([token], 0, [block])
    with mock.patch.object(Experts, "__call__", recorded):
        model.forward(builder.build(model.device), cache)
    assert len(chosen) == config.num_hidden_layers, len(chosen)
    return {batch: _distinct(chosen, batch) for batch in batches if batch <= len(ids)}


def _distinct(chosen: list[Tensor], batch: int) -> float:
    """chosen: of each layer [tokens, top_k]."""
    counts = [
        len(set(group.flatten().tolist()))
        for layer in chosen
        for group in torch.split(layer.cpu(), batch)
        if len(group) == batch
    ]
    return sum(counts) / len(counts)


def expected_experts(config: CheckpointConfig, batch: int) -> float:
    return experts_met(config.moe.num_experts, config.moe.top_k, batch)
