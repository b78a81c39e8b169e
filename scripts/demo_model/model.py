"""A small trainable Mixtral: the published architecture, written for speed on a few CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the demo model, with the names of the published configuration."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    max_position_embeddings: int = 2048
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5


PAD = 64  # expert row counts are rounded up to this, because the CPU matmul compiles a kernel for every new shape


class Gather(torch.autograd.Function):
    """Rows of x by index. Both directions are gathers, which are much faster than a scatter-add.

    Row r of the result is row ``source[r] // copies`` of x; slot s of the source landed in row ``place[s]``. Rows with
    ``pad`` set are zero, so that they add nothing to the gradients of the experts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor, copies: int, pad: Tensor | None) -> Tensor:
        ctx.save_for_backward(place)
        ctx.copies = copies
        rows = x[source if copies == 1 else source // copies]
        if pad is not None:
            rows[pad] = 0
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (place,) = ctx.saved_tensors
        back = grad[place]
        if ctx.copies > 1:
            back = back.view(-1, ctx.copies, back.shape[-1]).sum(1)
        return back, None, None, None, None


def _gather(x: Tensor, source: Tensor, place: Tensor, copies: int, pad: Tensor | None) -> Tensor:
    rows: Tensor = Gather.apply(x, source, place, copies, pad)  # type: ignore[no-untyped-call]
    return rows


class Experts(nn.Module):
    """Router and experts of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, i, e = shape.hidden_size, shape.intermediate_size, shape.num_local_experts
        self.top = shape.num_experts_per_tok
        self.gate = nn.Parameter(torch.empty(e, h))
        self.w13 = nn.Parameter(torch.empty(e, 2 * i, h))
        self.w2 = nn.Parameter(torch.empty(e, h, i))
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:  # x: [tokens, hidden]
        experts = self.gate.shape[0]
        probs = F.linear(x, self.gate).float().softmax(-1)  # [tokens, experts]
        weight, chosen = probs.topk(self.top, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # slots sorted by expert, [tokens * top]
        counts = torch.bincount(flat, minlength=experts)
        self.balance = experts * (counts / order.numel() * probs.mean(0)).sum()
        padded = (counts + PAD - 1) // PAD * PAD
        shift = (padded.cumsum(0) - padded) - (
            counts.cumsum(0) - counts
        )  # added to a sorted slot to get its padded row
        rows = torch.arange(order.numel()) + shift[flat[order]]
        source = torch.zeros(int(padded.sum()), dtype=torch.long)
        source[rows] = order
        pad = torch.ones(source.numel(), dtype=torch.bool)
        pad[rows] = False
        place = torch.empty_like(order)
        place[order] = rows
        parts = torch.split(_gather(x, source, place, self.top, pad), padded.tolist())
        out = []
        for part, w13, w2 in zip(parts, self.w13.unbind(), self.w2.unbind(), strict=True):
            gate, up = F.linear(part, w13).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, w2))
        slots = _gather(torch.cat(out), place, source, 1, None).view(*chosen.shape, -1)  # [tokens, top, hidden]
        return (weight.to(slots.dtype).unsqueeze(1) @ slots).squeeze(1)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, d = shape.hidden_size, shape.head_dim
        self.heads, self.kv_heads, self.eps = shape.num_attention_heads, shape.num_key_value_heads, shape.rms_norm_eps
        self.head_dim = d
        self.norm1 = nn.Parameter(torch.ones(h))
        self.norm2 = nn.Parameter(torch.ones(h))
        self.qkv = nn.Parameter(torch.empty((self.heads + 2 * self.kv_heads) * d, h))
        self.o = nn.Parameter(torch.empty(h, self.heads * d))
        self.moe = Experts(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x: [batch, seq, hidden]
        b, s, h = x.shape
        qkv = F.linear(F.rms_norm(x, (h,), self.norm1, self.eps), self.qkv)
        heads = qkv.view(b, s, -1, self.head_dim).transpose(1, 2)
        q, k, v = torch.split(heads, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # [batch, heads, seq, head_dim]
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        attended = attend(q, k, v)
        x = x + F.linear(attended.transpose(1, 2).reshape(b, s, -1), self.o)
        mixed: Tensor = self.moe(F.rms_norm(x, (h,), self.norm2, self.eps).view(b * s, h))
        return x + mixed.view(b, s, h)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention on [batch, heads, seq, head_dim], spelled out: the fused kernel is slower to train on a CPU."""
    seq, d = q.shape[-2:]
    future = torch.full((seq, seq), -1e30, dtype=q.dtype).triu(1)
    q, k, flat_v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=d**-0.5)  # [batch * heads, seq, seq]
    return torch.bmm(scores.softmax(-1), flat_v).view_as(v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; cos and sin are [seq, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class TinyMixtral(nn.Module):
    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.head = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                # The layers that write to the residual stream start smaller, so that depth does not add up.
                std = 0.02 / (2 * shape.num_hidden_layers) ** 0.5 if name.endswith((".o", ".w2")) else 0.04
                nn.init.normal_(p, 0.0, std, generator=generator)
        freq = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angle = torch.outer(torch.arange(shape.max_position_embeddings).float(), freq)
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits [batch, seq, vocab] for ids [batch, seq]."""
        s = ids.shape[1]
        x = F.embedding(ids, self.embed).to(dtype)
        cos, sin = self.cos[:s].to(dtype), self.sin[:s].to(dtype)
        for layer in self.blocks():
            x = layer(x, cos, sin)
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.shape.rms_norm_eps), self.head)

    def blocks(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def balance(self) -> Tensor:
        """Mean load-balancing loss of the routers in the last forward pass; 1 is even."""
        return torch.stack([layer.moe.balance for layer in self.blocks()]).mean()
