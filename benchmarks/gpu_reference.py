"""Mixtral in float64 and plain words: what the kernels are compared with. It shares no arithmetic with the runtime."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu_model import RandomCheckpoint
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats.fp8 import E4M3, E4M3_MAX
from mixtral_runtime.tensor_names import KV_SCALE


@dataclass(frozen=True, slots=True)
class Matrix:
    """weight: float64 [..., out, in], what the stored values stand for. activation_scale: with FP8, which rounds the
    activations too."""

    weight: Tensor
    activation_scale: float | None = None

    def __getitem__(self, expert: int) -> "Matrix":
        return Matrix(self.weight[expert], self.activation_scale)

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] float64 -> [tokens, out]."""
        if self.activation_scale is not None:
            x = rounded_to_e4m3(x, self.activation_scale)
        return x @ self.weight.T


def rounded_to_e4m3(x: Tensor, scale: float) -> Tensor:
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).float().to(E4M3).to(x.dtype) * scale


def matrix(checkpoint: RandomCheckpoint, name: str, expert: int | None = None) -> Matrix:
    """name: such as `transformer.layers.0.attention.qkv`. expert: None for all of a stacked weight's."""

    def tensor(suffix: str) -> Tensor:
        found = checkpoint.tensor(f"{name}.{suffix}")
        return found if expert is None or len(found) != checkpoint.config.moe.num_experts else found[expert]

    stored, algorithm = tensor("weight"), checkpoint.config.quantization.quant_algo
    if algorithm is None or "lm_head" in name or "router" in name:
        return Matrix(stored.double())
    if algorithm == "W8A16":
        return Matrix(stored.double() * tensor("per_channel_scale").double()[..., None])
    scales = tensor("weights_scaling_factor").double()
    if algorithm == "FP8":
        weight = stored.double() * scales.reshape(*stored.shape[:-2], 1, 1)
        return Matrix(weight, float(tensor("activation_scaling_factor")))
    byte = stored.to(torch.int16) & 0xFF  # two values of 4 bits with a sign, the even row's in the low half
    halves = torch.stack((byte & 0x0F, byte >> 4), dim=-2).flatten(-3, -2)
    values = torch.where(halves > 7, halves - 16, halves).double()
    group = values.shape[-1] // scales.shape[-1]
    prequant = tensor("prequant_scaling_factor").double()[..., None, :]
    return Matrix(values * scales.repeat_interleave(group, dim=-1) * prequant)


def experts_output(fc: Matrix, proj: Matrix, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """x: [tokens, hidden]; chosen, shares: [tokens, top_k]. fc has the up projection first."""
    total = torch.zeros_like(x)
    for expert in range(len(fc.weight)):
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        if len(rows):
            total.index_add_(0, rows, shares[rows, places, None] * one_expert(fc[expert], proj[expert], x[rows]))
    return total


def one_expert(fc: Matrix, proj: Matrix, x: Tensor) -> Tensor:
    up, gate = fc(x).chunk(2, dim=-1)
    return proj(F.silu(gate) * up)


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    spread = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    normed: Tensor = x / spread * weight.double()
    return normed


def routes(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    best, chosen = logits.topk(top_k, dim=-1)
    return chosen, best.softmax(-1)


def rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """x: [tokens, heads, head_size], halves turned against each other; positions: [tokens]."""
    size = x.shape[-1]
    exponents = torch.arange(0, size, 2, dtype=torch.float64, device=x.device) / size
    angles = positions[:, None, None].double() / base**exponents
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), dim=-1)


def attended(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """queries: [tokens, heads, size] at `positions`; keys, values: [context, kv_heads, size] -> [tokens, heads * size].
    A query sees the keys up to its own position."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (one.repeat_interleave(group, dim=1).transpose(0, 1) for one in (keys, values))
    scores = queries.transpose(0, 1) @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5  # [heads, tokens, context]
    later = torch.arange(keys.shape[1], device=scores.device) > positions[:, None]
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    outputs: Tensor = weights @ values  # [heads, tokens, size]
    return outputs.transpose(0, 1).flatten(1)


class Reference:
    """The whole model. Its weights are dequantised once."""

    def __init__(self, checkpoint: RandomCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        names = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj", "mlp.router")
        self._layers = [
            {name: matrix(checkpoint, f"transformer.layers.{i}.{name}") for name in names}
            for i in range(self._config.num_hidden_layers)
        ]
        self._lm_head = matrix(checkpoint, "lm_head")

    def logits(self, token_ids: list[int]) -> Tensor:
        """After every token of one sequence, [tokens, vocab] float64."""
        config, tensor = self._config, self._checkpoint.tensor
        positions = torch.arange(len(token_ids))
        x = tensor("transformer.vocab_embedding.weight")[token_ids].double()
        for i, layer in enumerate(self._layers):
            prefix = f"transformer.layers.{i}"
            normed = norm(x, tensor(f"{prefix}.input_layernorm.weight"), config.norm_epsilon)
            x = x + layer["attention.dense"](self._attention(i, layer["attention.qkv"](normed), positions))
            normed = norm(x, tensor(f"{prefix}.post_layernorm.weight"), config.norm_epsilon)
            chosen, shares = routes(layer["mlp.router"](normed), config.moe.top_k)
            x = x + experts_output(layer["mlp.fc"], layer["mlp.proj"], normed, chosen, shares)
        final = norm(x, tensor("transformer.ln_f.weight"), config.norm_epsilon)
        return self._lm_head(final)[:, : config.vocab_size]

    def _attention(self, layer: int, qkv: Tensor, positions: Tensor) -> Tensor:
        config = self._config
        queries, keys, values = split_heads(config, qkv)
        queries, keys = (rotated(one, positions, config.rotary_base) for one in (queries, keys))
        if config.quantization.kv_cache_quant_algo is not None:
            scale = float(self._checkpoint.tensor(f"transformer.layers.{layer}.attention.{KV_SCALE}"))
            keys, values = (rounded_to_e4m3(one, scale) for one in (keys, values))
        return attended(queries, keys, values, positions)


def split_heads(config: CheckpointConfig, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, (heads + 2 * kv_heads) * head_size] -> queries, keys and values, each [tokens, heads, head_size]."""
    heads = qkv.view(len(qkv), -1, config.head_size)
    kv_heads = config.num_key_value_heads
    queries, keys, values = torch.split(heads, [config.num_attention_heads, kv_heads, kv_heads], dim=1)
    return queries, keys, values
