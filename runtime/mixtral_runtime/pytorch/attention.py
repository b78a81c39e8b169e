"""Attention over the paged KV cache, computed so that a token's result never depends on what runs beside it.

Matrix kernels choose their blocking, and with it the order of their sums, by shape. So the shape must depend on nothing
but a token's position: in plain PyTorch queries are taken in tiles of TILE rows aligned at absolute positions, each
against the keys 0 to the tile's end. Rows of the tile that are not in the batch (earlier chunks, future tokens) are
zeros and are thrown away. Decode is a tile with one live row. Prefilled in one chunk or in many, or decoded, alone or
among others, a token gets the same bits. The CPU kernel promises the same with partitions of keys at absolute positions
(kernels/cpu/attention.cpp); its bits are others. The GPU kernels give it up for speed (kernels/gpu/attention.py).
"""

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.kernels.availability import gpu_kernels_serve
from mixtral_runtime.pytorch.batch import Batch, Span
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache, cache_dtype
from mixtral_runtime.pytorch.rotary import Rotary

TILE = 16  # query rows
assert BLOCK_SIZE % TILE == 0


class Attention(Protocol):
    """Grouped-query attention of Ainslie et al. 2023, arXiv:2305.13245, with rotary positions."""

    def __call__(self, layer: int, qkv: Tensor, cache: KvCache, batch: Batch) -> Tensor:
        """qkv: [tokens, (heads + 2 * kv_heads) * head_size]. Writes the keys, turned by their positions, and the values
        into the cache; -> [tokens, heads * head_size]."""
        ...


def paged_attention(config: CheckpointConfig, device: torch.device, dtype: torch.dtype) -> Attention:
    """dtype: of the activations."""
    if dtype.itemsize == 2 and gpu_kernels_serve(device):
        from mixtral_runtime.kernels.gpu.attention import HEAD_SIZES, GpuAttention

        if config.head_size in HEAD_SIZES:
            return GpuAttention.of(config, device, cache_dtype(config, dtype))
    if device.type == "cpu" and cpu_path() != "none":
        return KernelAttention(config, device)
    return PlainAttention(config, device, dtype)


class KernelAttention:
    """By the CPU kernels, in two calls."""

    def __init__(self, config: CheckpointConfig, device: torch.device) -> None:
        self._rotary = Rotary(config.head_size, config.rotary_base, config.max_position_embeddings, device)

    def __call__(self, layer: int, qkv: Tensor, cache: KvCache, batch: Batch) -> Tensor:
        kept = (cache.storage, cache.scales, layer)
        angles = (self._rotary.cos, self._rotary.sin, batch.positions)
        queries = torch.ops.mixtral_cpu.rotate_and_cache(qkv, *angles, batch.slots, *kept)
        attended = torch.ops.mixtral_cpu.paged_attention(queries, *kept, batch.span_table, batch.block_tables)
        return cast(Tensor, attended)


class PlainAttention:
    """In PyTorch's own operations, on any device."""

    def __init__(self, config: CheckpointConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._rotary = Rotary(config.head_size, config.rotary_base, config.max_position_embeddings, device)
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._head_size = config.head_size
        # The causal mask of any tile is the tail of one pattern: everything, then a lower triangle.
        keys = -(-config.max_position_embeddings // TILE) * TILE
        mask = torch.zeros(TILE, keys, device=device, dtype=dtype)
        mask[:, -TILE:] = torch.full((TILE, TILE), float("-inf")).triu(1)
        self._mask = mask.repeat(self._group, 1)  # [group * TILE, keys]

    def __call__(self, layer: int, qkv: Tensor, cache: KvCache, batch: Batch) -> Tensor:
        heads = qkv.view(len(qkv), -1, self._head_size)  # [tokens, heads + 2 * kv_heads, head_size]
        queries, keys, values = torch.split(heads, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        cache.write(layer, batch.slots, self._rotary(keys, batch.positions), values)
        queries = self._rotary(queries, batch.positions).flatten(1)  # [tokens, heads * head_size]
        output = torch.empty_like(queries)
        for span in batch.spans:
            output[span.rows] = self._attend(layer, queries[span.rows], cache, span)
        return output

    def _attend(self, layer: int, queries: Tensor, cache: KvCache, span: Span) -> Tensor:
        keys, values = cache.read(layer, span.blocks, span.end)  # [kv_heads, slots, head_size]
        first = span.start // TILE
        tiles = -(-span.end // TILE) - first
        live = slice(span.start - first * TILE, span.end - first * TILE)
        padded = queries.new_zeros(tiles * TILE, queries.shape[1])
        padded[live] = queries
        # The group's query heads become rows of their key head: one matrix product, no repeated keys.
        split = (tiles, TILE, self._kv_heads, self._group, self._head_size)
        folded = padded.view(split).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [tiles, kv_heads, group * TILE, head_size]
        output = torch.empty_like(folded)
        for i in range(tiles):
            end = (first + i + 1) * TILE
            output[i] = F.scaled_dot_product_attention(
                folded[i, None],
                keys[None, :, :end],
                values[None, :, :end],
                attn_mask=self._mask[:, self._mask.shape[1] - end :],
            )[0]
        unfolded = output.view(tiles, self._kv_heads, self._group, TILE, self._head_size).permute(0, 3, 1, 2, 4)
        return unfolded.reshape(padded.shape)[live]
