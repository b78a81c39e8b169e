"""Attention over the paged KV cache on a GPU: which kernels a step needs, and their launches."""

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.kernels.gpu.attention_config import (
    WRITE_TOKENS,
    WRITE_WARPS,
    Gpu,
    decode_config,
    most_programs,
    pieces_of,
    prefill_config,
)
from mixtral_runtime.kernels.gpu.attention_decode import decode_kernel
from mixtral_runtime.kernels.gpu.attention_prefill import prefill_kernel
from mixtral_runtime.kernels.gpu.rotary import write_kv_kernel
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache
from mixtral_runtime.pytorch.rotary import Rotary

HEAD_SIZES = (32, 64, 128)
LEAST_COLUMNS = 8  # of a matrix instruction


class GpuAttention:
    """pytorch.attention.Attention. Spans of one query go through the decode kernel, which also writes to the cache; the
    others through one that writes and one that attends. A step in which every span is one token is one launch.

    Results are the same for the same batch, but a token's last bits depend on the batch: on how many pieces its keys
    are cut into, and on whether it is decoded or prefilled. Nothing here waits for the device or allocates by what lies
    on it, so a CUDA graph may record it. One object serves one stream at a time.
    """

    def __init__(
        self, heads: int, kv_heads: int, head_size: int, rotary: Rotary, stored: torch.dtype, gpu: Gpu | None = None
    ) -> None:
        """stored: dtype of the cache's storage, 16-bit floats or uint8 for E4M3. gpu: the current one if None."""
        assert head_size in HEAD_SIZES, head_size
        self._gpu = gpu or Gpu.current()
        self._heads = heads
        self._kv_heads = kv_heads
        self._group = heads // kv_heads
        self._head_size = head_size
        self._angles = (rotary.cos, rotary.sin)
        self._decode = decode_config(head_size, stored, self._gpu)
        self._prefill = prefill_config(head_size, stored, self._gpu)
        device = rotary.cos.device
        programs = most_programs(self._decode, self._gpu)
        self._partials = torch.empty(programs, self._group, head_size, device=device)
        self._sums = torch.empty(programs, 2, self._group, device=device)
        self._arrivals = torch.zeros(programs, device=device, dtype=torch.int32)

    @classmethod
    def of(cls, config: CheckpointConfig, device: torch.device, stored: torch.dtype) -> "GpuAttention":
        rotary = Rotary(config.head_size, config.rotary_base, config.max_position_embeddings, device)
        return cls(config.num_attention_heads, config.num_key_value_heads, config.head_size, rotary, stored)

    def __call__(self, layer: int, qkv: Tensor, cache: KvCache, batch: Batch) -> Tensor:
        return self.attend(layer, qkv, cache.storage, cache.scales, batch)

    def attend(self, layer: int, qkv: Tensor, storage: Tensor, scales: Tensor | None, batch: Batch) -> Tensor:
        """storage, scales: as in KvCache."""
        out = qkv.new_empty(len(qkv), self._heads * self._head_size)
        if not len(qkv):
            return out
        qkv = qkv.contiguous()
        stored = storage if scales is None else storage.view(torch.int16)
        if batch.longest_query > 1:
            self._write(layer, qkv, stored, scales, batch)
            self._attend_many(layer, qkv, stored, scales, batch, out)
        if batch.longest_query == 1 or len(batch.span_table) > 1:
            self._attend_one(layer, qkv, stored, scales, batch, out)
        return out

    def _write(self, layer: int, qkv: Tensor, stored: Tensor, scales: Tensor | None, batch: Batch) -> None:
        write_kv_kernel[(triton.cdiv(len(qkv), WRITE_TOKENS), self._kv_heads)](
            qkv,
            *self._angles,
            batch.positions,
            batch.slots,
            stored,
            scales,
            layer,
            len(qkv),
            stored[0, 0].numel(),
            HEADS=self._heads,
            KV_HEADS=self._kv_heads,
            HEAD_SIZE=self._head_size,
            TOKENS=WRITE_TOKENS,
            FP8=scales is not None,
            num_warps=WRITE_WARPS,
        )

    def _attend_many(
        self, layer: int, qkv: Tensor, stored: Tensor, scales: Tensor | None, batch: Batch, out: Tensor
    ) -> None:
        config, spans = self._prefill, len(batch.span_table)
        filled = triton.next_power_of_2(self._group)
        queries = config.rows // filled
        prefill_kernel[(self._kv_heads, (len(qkv) - 1) // queries + spans)](
            qkv,
            *self._angles,
            batch.span_table,
            batch.block_tables,
            stored,
            scales,
            out,
            layer,
            stored[0, 0].numel(),
            spans,
            KV_HEADS=self._kv_heads,
            GROUP=self._group,
            FILLED=filled,
            QUERIES=queries,
            HEAD_SIZE=self._head_size,
            BLOCK=BLOCK_SIZE,
            KEYS=config.keys,
            STAGES=config.stages,
            FP8=scales is not None,
            FP8_UNITS=self._gpu.has_fp8,
            num_warps=config.warps,
        )

    def _attend_one(
        self, layer: int, qkv: Tensor, stored: Tensor, scales: Tensor | None, batch: Batch, out: Tensor
    ) -> None:
        config, spans = self._decode, len(batch.span_table)
        pieces = pieces_of(spans * self._kv_heads, batch.longest_context, config, self._gpu)
        decode_kernel[(self._kv_heads, pieces, spans)](
            qkv,
            *self._angles,
            batch.slots,
            batch.span_table,
            batch.block_tables,
            stored,
            scales,
            out,
            self._partials,
            self._sums,
            self._arrivals,
            layer,
            stored[0, 0].numel(),
            pieces,
            KV_HEADS=self._kv_heads,
            GROUP=self._group,
            ROWS=max(triton.next_power_of_2(self._group), LEAST_COLUMNS),
            HEAD_SIZE=self._head_size,
            BLOCK=BLOCK_SIZE,
            KEYS=config.keys,
            LEAST_KEYS=config.least_keys,
            MERGED=config.merged,
            STAGES=config.stages,
            FP8=scales is not None,
            FP8_UNITS=self._gpu.has_fp8,
            num_warps=config.warps,
        )


def decode_alone(
    storage: Tensor,
    scales: Tensor | None,
    contexts: Sequence[int],
    tables: Sequence[Sequence[int]],
    group: int,
    dtype: torch.dtype,
) -> Callable[[int], Tensor]:
    """The decode kernel over a cache, for measuring it: call the answer with a layer, as often as is wanted, also in a
    CUDA graph. It reads the keys and values of every sequence once, and writes the last token's.

    storage, scales: as in KvCache. contexts: keys of each sequence, with the new one; tables: the blocks of each.
    group: queries of a KV head, drawn at random with the new keys and values, in dtype.
    """
    _, _, _, _, kv_heads, head_size = storage.shape
    builder = BatchBuilder()
    for context, table in zip(contexts, tables, strict=True):
        builder.add([0], context - 1, table)
    batch = builder.build(storage.device)
    rotary = Rotary(head_size, 1e6, max(contexts), storage.device)
    attention = GpuAttention(kv_heads * group, kv_heads, head_size, rotary, storage.dtype)
    qkv = torch.randn(len(contexts), kv_heads * (group + 2) * head_size, device=storage.device).to(dtype)
    return lambda layer: attention.attend(layer, qkv, storage, scales, batch)
