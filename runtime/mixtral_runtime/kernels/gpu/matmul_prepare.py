"""Activations as a tiled product reads them, in one pass before it: scaled or rounded, in the matrix units' order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixtral_runtime.kernels.gpu.matmul_values import to_stored_activation, true_column
from mixtral_runtime.kernels.gpu.weights import GpuWeight

COLUMNS = 1024


def prepare(x: Tensor, weight: GpuWeight) -> Tensor:
    """x: [rows, in] in the model's dtype, contiguous -> [rows, in] in the weight's `activation_dtype`."""
    if not (weight.permuted or weight.prequant_scale is not None or weight.encoding == "fp8"):
        return x
    rows, columns = x.shape
    out = torch.empty(rows, columns, dtype=weight.activation_dtype, device=x.device)
    _prepare[(rows, triton.cdiv(columns, COLUMNS))](
        x,
        weight.prequant_scale,
        weight.inverse_scale,
        out,
        K=columns,
        ENCODING=weight.encoding,
        PREQUANT=weight.prequant_scale is not None,
        PERMUTED=weight.permuted,
        COLUMNS=COLUMNS,
        num_warps=4,
    )
    return out


@triton.jit
def _prepare(
    x,
    prequant_scale,  # the first of the experts', which are equal
    inverse_scale,
    out,
    K: tl.constexpr,
    ENCODING: tl.constexpr,
    PREQUANT: tl.constexpr,
    PERMUTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = true_column(place) if PERMUTED else place
    value = tl.load(x + row * K + column, mask=place < K)
    factor = tl.load(prequant_scale + column, mask=place < K) if PREQUANT else 1.0
    inverse = tl.load(inverse_scale) if ENCODING == "fp8" else 1.0
    stored = to_stored_activation(value, factor, inverse, ENCODING, PREQUANT, out.dtype.element_ty)
    tl.store(out + row * K + place, stored, mask=place < K)
