"""A step's queries, keys and values over a paged cache whose slots are NaN where no sequence wrote, and what attention
makes of them in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtral_runtime.formats.fp8 import E4M3, to_e4m3
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE
from mixtral_runtime.pytorch.rotary import Rotary

CPU = torch.device("cpu")
LAYER = 1
SCALES = torch.tensor([0.5, 0.013])
Spans = list[tuple[int, int]]  # (start, end) of the new tokens of each sequence


@dataclass(frozen=True)
class AttentionCase:
    """storage, scales: of a KvCache of two layers, with what the sequences wrote before the step."""

    qkv: Tensor  # [tokens, (heads + 2 * kv_heads) * head_size]
    storage: Tensor
    scales: Tensor | None
    tables: list[list[int]]
    spans: Spans
    batch: Batch
    rotary: Rotary
    kv_heads: int
    group: int
    head_size: int

    def stored(self) -> Tensor:
        """`storage` after the step."""
        heads = self.qkv.view(len(self.qkv), -1, self.head_size)
        _, keys, values = torch.split(heads, [self.kv_heads * self.group, self.kv_heads, self.kv_heads], dim=1)
        storage = self.storage.clone()
        flat = storage[LAYER].flatten(1, 2)  # [2, slots, kv_heads, head_size]
        for part, new in zip(flat, (self.rotary(keys, self.batch.positions), values), strict=True):
            part[self.batch.slots] = new if self.scales is None else to_e4m3(new, self.scales[LAYER]).view(torch.uint8)
        return storage

    def expected(self) -> Tensor:
        """[tokens, heads * head_size] float64, a sequence at a time."""
        cache = self.stored()[LAYER]
        if self.scales is not None:
            cache = cache.view(E4M3).double() * self.scales[LAYER].double()
        heads = self.qkv.view(len(self.qkv), -1, self.head_size)[:, : self.kv_heads * self.group]
        queries = self.rotary(heads, self.batch.positions).double()
        results, row = [], 0
        for (start, end), table in zip(self.spans, self.tables, strict=True):
            keys, values = cache[:, table].flatten(1, 2)[:, :end].double().repeat_interleave(self.group, 2)
            scores = torch.einsum("qhd,khd->hqk", queries[row : row + end - start], keys) / self.head_size**0.5
            row += end - start
            future = torch.arange(end) > torch.arange(start, end)[:, None]
            weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
            results.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
        return torch.cat(results)


def attention_case(
    head_size: int, kv_heads: int, group: int, dtype: torch.dtype, spans: Spans, *, fp8: bool = False
) -> AttentionCase:
    random = torch.Generator().manual_seed(head_size + group)
    counts = [blocks_for(end) for _, end in spans]
    # Block 0 is nobody's, and stays NaN: it is what a table that was not read points at.
    order = (1 + torch.randperm(sum(counts) + 2, generator=random)).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    kept = torch.full((2, 2, sum(counts) + 3, BLOCK_SIZE, kv_heads, head_size), torch.nan)
    builder = BatchBuilder()
    for table, (start, end) in zip(tables, spans, strict=True):
        builder.add([0] * (end - start), start, table)
        for index, block in enumerate(table):
            written = kept[LAYER, :, block, : max(start - index * BLOCK_SIZE, 0)]
            written.copy_(torch.randn(written.shape, generator=random))
    tokens = sum(end - start for start, end in spans)
    return AttentionCase(
        qkv=torch.randn(tokens, kv_heads * (group + 2) * head_size, generator=random).mul(1.5).to(dtype),
        storage=to_e4m3(kept, SCALES[LAYER]).view(torch.uint8) if fp8 else kept.to(dtype),
        scales=SCALES if fp8 else None,
        tables=tables,
        spans=spans,
        batch=builder.build(CPU),
        rotary=Rotary(head_size, 1e4, max(end for _, end in spans), CPU),
        kv_heads=kv_heads,
        group=group,
        head_size=head_size,
    )


def error(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖; NaN where there is one."""
    return float((found.double() - exact).norm() / exact.norm())
