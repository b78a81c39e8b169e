"""A plain PyTorch Mixtral with int8 weights for one sequence, compiled by `torch.compile`: what PyTorch reaches alone.

After the idea of gpt-fast (PyTorch's own example of fast decoding): weight-only int8 that the compiler fuses into the
matrix-vector product, the chosen experts' weights gathered in the same kernel, a static KV cache, and a whole step as
one CUDA graph. The layer is compiled once and its code serves all layers; the graph is recorded around it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from gpu_model import RandomCheckpoint
from gpu_timing import time_calls
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """compile_s: until the first step was done."""

    seconds: float
    graph: bool
    compiled: bool
    compile_s: float


@dataclass(frozen=True, slots=True)
class PeerLayer:
    """Weights int8 [out, in] (experts: [experts, out, in]), each with its scales [..., out]; norms [hidden]; cache
    [2, kv_heads, positions, head_size]."""

    norms: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    dense: tuple[Tensor, Tensor]
    router: Tensor
    fc: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    cache: Tensor


def load_layer(checkpoint: RandomCheckpoint, index: int, positions: int) -> PeerLayer:
    config = checkpoint.config
    prefix = f"transformer.layers.{index}"

    def quantized(name: str) -> tuple[Tensor, Tensor]:
        stem = f"{prefix}.{name}"
        return checkpoint.tensor(f"{stem}.weight"), checkpoint.tensor(f"{stem}.per_channel_scale")

    shape = (2, config.num_key_value_heads, positions, config.head_size)
    return PeerLayer(
        (
            checkpoint.tensor(f"{prefix}.input_layernorm.weight"),
            checkpoint.tensor(f"{prefix}.post_layernorm.weight"),
        ),
        quantized("attention.qkv"),
        quantized("attention.dense"),
        checkpoint.tensor(f"{prefix}.mlp.router.weight").to(config.torch_dtype),
        quantized("mlp.fc"),
        quantized("mlp.proj"),
        torch.zeros(shape, dtype=config.torch_dtype, device=checkpoint.device),
    )


def layer_step(config: CheckpointConfig) -> Callable[..., Tensor]:
    """One layer for one token: plain operations, which is what is compiled."""
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_size
    top_k = config.moe.top_k

    def multiply(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype)) * scales

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + config.norm_epsilon)).to(x.dtype) * weight

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        low, high = x.float().chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)

    def step(
        x: Tensor,  # [1, hidden]
        position: Tensor,  # [1] int64
        mask: Tensor,  # [1, 1, 1, positions] bool
        cos: Tensor,  # [head_size / 2]
        sin: Tensor,
        input_norm: Tensor,
        post_norm: Tensor,
        qkv: Tensor,
        qkv_scales: Tensor,
        dense: Tensor,
        dense_scales: Tensor,
        router: Tensor,
        fc: Tensor,
        fc_scales: Tensor,
        proj: Tensor,
        proj_scales: Tensor,
        cache: Tensor,
    ) -> Tensor:
        mixed = multiply(norm(x, input_norm), qkv, qkv_scales).view(-1, size)
        queries, keys, values = torch.split(mixed, [heads, kv_heads, kv_heads])
        cache[0].index_copy_(1, position, turn(keys, cos, sin)[:, None])
        cache[1].index_copy_(1, position, values[:, None])
        wide = cache.repeat_interleave(heads // kv_heads, dim=1)[:, None]  # [2, 1, heads, positions, head_size]
        attended = F.scaled_dot_product_attention(turn(queries, cos, sin)[None, :, None], wide[0], wide[1], mask)
        x = x + multiply(attended.reshape(1, -1), dense, dense_scales)
        normed = norm(x, post_norm)
        chosen_logits, chosen = F.linear(normed, router).float().topk(top_k)
        chosen, share = chosen[0], chosen_logits.softmax(-1).to(x.dtype)  # [top_k], [1, top_k]
        up_gate = torch.einsum("h,koh->ko", normed[0], fc[chosen].to(x.dtype)) * fc_scales[chosen]
        up, gate = up_gate.chunk(2, dim=-1)
        outputs = torch.einsum("ki,kdi->kd", F.silu(gate) * up, proj[chosen].to(x.dtype)) * proj_scales[chosen]
        return x + share @ outputs

    return step


class Peer:
    """Decodes one sequence greedily; what stands in its cache before `position` is whatever was written there."""

    def __init__(self, checkpoint: RandomCheckpoint, positions: int, *, compiled: bool) -> None:
        """checkpoint: of int8 weights. positions: of the static cache, all of which every step reads."""
        config, device = checkpoint.config, checkpoint.device
        self._device = device
        self._layers = [load_layer(checkpoint, i, positions) for i in range(config.num_hidden_layers)]
        self._embedding = checkpoint.tensor("transformer.vocab_embedding.weight")
        self._final_norm = checkpoint.tensor("transformer.ln_f.weight")
        self._lm_head = checkpoint.tensor("lm_head.weight")
        self._epsilon = config.norm_epsilon
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32, device=device) / config.head_size
        angles = torch.arange(positions, device=device)[:, None] / config.rotary_base**exponents
        self._cos, self._sin = angles.cos(), angles.sin()
        self._slots = torch.arange(positions, device=device)
        self.token = torch.ones(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, config.vocab_size, device=device)  # of the last step
        step = layer_step(config)
        self._step = torch.compile(step, fullgraph=True, dynamic=False) if compiled else step
        self._head = torch.compile(self._logits, fullgraph=True, dynamic=False) if compiled else self._logits

    def _logits(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)).to(x.dtype)
        return F.linear(normed * self._final_norm, self._lm_head).float()

    def __call__(self) -> None:
        """One step: `token` at `position` becomes the next token; static tensors, so that it can be recorded."""
        x = F.embedding(self.token, self._embedding)
        mask = (self._slots <= self.position)[None, None, None]
        cos, sin = self._cos[self.position], self._sin[self.position]
        for one in self._layers:
            x = self._step(
                x,
                self.position,
                mask,
                cos,
                sin,
                *one.norms,
                *one.qkv,
                *one.dense,
                one.router,
                *one.fc,
                *one.proj,
                one.cache,
            )
        self.logits.copy_(self._head(x))
        self.token.copy_(self.logits.argmax(-1))


@torch.no_grad()
def measure_peer(checkpoint: RandomCheckpoint, context: int, positions: int, *, compiled: bool) -> PeerFigures:
    """A decode step at `context` tokens, the step repeated in place."""
    if compiled:
        from torch._inductor import config as inductor

        # A product with one row becomes a reduction that the conversion of int8 is fused into.
        inductor.coordinate_descent_tuning = True
        inductor.assert_indirect_indexing = False
    peer = Peer(checkpoint, positions, compiled=compiled)
    peer.position.fill_(context)
    begun = time.perf_counter()
    peer()
    compile_s = time.perf_counter() - begun
    timing = time_calls([peer], checkpoint.device, 1.0)
    return PeerFigures(timing.seconds, timing.graph, compiled, compile_s)
