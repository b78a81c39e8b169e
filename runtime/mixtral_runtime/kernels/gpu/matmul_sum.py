"""The sum of a product's parts, in fixed order: of the pieces that `in` was cut into, and of a token's experts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024


def sum_parts(parts: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """parts: float32 [splits, tokens * top_k, out]; weights: float32 [tokens, top_k], None for one part that counts
    fully. -> [tokens, out]."""
    splits, pairs, columns = parts.shape
    top_k = 1 if weights is None else weights.shape[1]
    out = torch.empty(pairs // top_k, columns, dtype=dtype, device=parts.device)
    _sum[(pairs // top_k, triton.cdiv(columns, COLUMNS))](
        parts,
        weights,
        out,
        pairs,
        N=columns,
        SPLITS=splits,
        TOP_K=top_k,
        WEIGHTED=weights is not None,
        COLUMNS=COLUMNS,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["pairs"])
def _sum(
    parts,
    weights,
    out,
    pairs,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        answer = tl.zeros((COLUMNS,), tl.float32)
        for split in tl.static_range(SPLITS):
            answer += tl.load(parts + (split * pairs.to(tl.int64) + pair) * N + column, mask=column < N, other=0)
        if WEIGHTED:
            answer *= tl.load(weights + pair)
        total += answer
    tl.store(out + token * N + column, total.to(out.dtype.element_ty), mask=column < N)
