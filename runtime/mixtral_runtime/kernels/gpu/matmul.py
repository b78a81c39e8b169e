"""Products of activations with one weight, or with the experts' weights that they chose: which kernel, and its call."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mixtral_runtime.kernels.gpu.matmul_config import TileConfig, one_by_one, tile_config, token_config
from mixtral_runtime.kernels.gpu.matmul_prepare import prepare
from mixtral_runtime.kernels.gpu.matmul_sum import sum_parts
from mixtral_runtime.kernels.gpu.matmul_tiles import tiled_product
from mixtral_runtime.kernels.gpu.matmul_token import one_token_product
from mixtral_runtime.kernels.gpu.routing import Routing
from mixtral_runtime.kernels.gpu.weights import INTERPRETED, GpuWeight


class GpuLinear:
    """weight: of one expert. The order of a row's sum depends on the number of rows, so its last bits do too."""

    def __init__(self, weight: GpuWeight) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out] in x's dtype."""
        weight, tokens = self._weight, x.shape[0]
        if tokens == 0:
            return x.new_empty(0, weight.out_features)
        if one_by_one(weight, tokens):
            return one_token(x.contiguous(), weight, None, 1)
        config = tile_config(weight, tokens, swiglu=False)
        parts = tiled(prepare(x.contiguous(), weight), weight, None, config, 1, tokens)
        return sum_parts(parts, None, x.dtype) if config.splits > 1 else parts[0].to(x.dtype)


def tiled(
    x: Tensor, weight: GpuWeight, routing: Routing | None, config: TileConfig, rows_of_x: int, pairs: int
) -> Tensor:
    """x: as `prepare` leaves it; its row p // rows_of_x goes to pair p. -> float32 [splits, pairs, out], to be summed,
    or without splits and experts [1, pairs, out] in the model's dtype."""
    final = config.splits == 1 and routing is None
    out = torch.empty(
        config.splits,
        pairs,
        weight.out_features,
        dtype=weight.dtype if final else torch.float32,
        device=x.device,
    )
    _launch(x, weight, routing, config, rows_of_x, pairs, out, None)
    return out


def tiled_swiglu(
    x: Tensor, weight: GpuWeight, routing: Routing, config: TileConfig, top_k: int, reader: GpuWeight
) -> Tensor:
    """x: [tokens, in] as `prepare` leaves it -> [pairs, out / 2] as `prepare` would leave it for `reader`, which is
    multiplied next."""
    shape = (routing.pairs, weight.out_features // 2)
    out = torch.empty(shape, dtype=reader.activation_dtype, device=x.device)
    _launch(x, weight, routing, config, top_k, routing.pairs, out, reader)
    return out


@dataclass(frozen=True, slots=True)
class Choice:
    """What few tokens chose: experts int64 and weights float32, [tokens, top_k], contiguous."""

    experts: Tensor
    weights: Tensor


def one_token(x: Tensor, weight: GpuWeight, choice: Choice | None, rows_of_x: int, *, prepared: bool = False) -> Tensor:
    """x: [tokens, in] in the model's dtype, of a choice's products [pairs, in] as `one_token_swiglu` leaves it
    (prepared) -> [tokens, out] in the model's dtype; of a choice, the weighted sum over its experts. For few tokens:
    each reads the weight again."""
    tokens = x.shape[0] if choice is None else choice.experts.shape[0]
    out = torch.empty(tokens, weight.out_features, dtype=weight.dtype, device=x.device)
    _launch_one_token(x, weight, choice, rows_of_x, out, None, prepared)
    return out


def one_token_swiglu(x: Tensor, weight: GpuWeight, choice: Choice, reader: GpuWeight) -> Tensor:
    """x: [tokens, in] in the model's dtype -> [pairs, out / 2], scaled or rounded as `reader` is multiplied."""
    shape = (choice.experts.numel(), weight.out_features // 2)
    out = torch.empty(shape, dtype=reader.activation_dtype, device=x.device)
    _launch_one_token(x, weight, choice, choice.experts.shape[1], out, reader, False)
    return out


def _launch_one_token(
    x: Tensor,
    weight: GpuWeight,
    choice: Choice | None,
    rows_of_x: int,
    out: Tensor,
    reader: GpuWeight | None,
    prepared: bool,
) -> None:
    config = token_config(weight, swiglu=reader is not None)
    half = weight.data.shape[1] if reader is None else weight.data.shape[1] // 2
    blocks = triton.cdiv(half, config.rows if reader is None else config.rows // 2)
    summed = choice is not None and reader is None
    one_token_product[(blocks, out.shape[0])](
        x,
        weight.data,
        weight.scales,
        weight.offsets,
        weight.prequant_scale,
        weight.inverse_scale,
        None if choice is None else choice.experts,
        None if choice is None else choice.weights,
        None if reader is None else reader.prequant_scale,
        None if reader is None else reader.inverse_scale,
        out,
        N=weight.out_features,
        K=weight.in_features,
        ENCODING=weight.encoding,
        HAS_OFFSETS=weight.offsets is not None,
        PREPARED=prepared or not (weight.encoding == "fp8" or weight.prequant_scale is not None),
        PREQUANT=weight.prequant_scale is not None,
        ROUTED=choice is not None,
        CHOICES=choice.experts.shape[1] if choice is not None and summed else 1,
        SUMMED=summed,
        ROWS_OF_X=rows_of_x,
        SWIGLU=reader is not None,
        NEXT="" if reader is None else reader.encoding,
        NEXT_PREQUANT=reader is not None and reader.prequant_scale is not None,
        X_DTYPE=weight.model_dtype,
        BLOCK_N=config.rows,
        BLOCK_K=config.columns,
        STAGES=config.stages,
        INTERPRETED=INTERPRETED,
        num_warps=config.warps,
    )


def _launch(
    x: Tensor,
    weight: GpuWeight,
    routing: Routing | None,
    config: TileConfig,
    rows_of_x: int,
    pairs: int,
    out: Tensor,
    reader: GpuWeight | None,
) -> None:
    tiles = triton.cdiv(pairs, config.tokens) if routing is None else routing.tiles
    half = weight.data.shape[1] if reader is None else weight.data.shape[1] // 2
    blocks = triton.cdiv(half, config.rows if reader is None else config.rows // 2)
    tiled_product[(tiles * blocks * config.splits,)](
        x,
        weight.data,
        weight.scales,
        weight.offsets,
        None if routing is None else routing.order,
        None if routing is None else routing.tile_experts,
        None if reader is None else reader.prequant_scale,
        None if reader is None else reader.inverse_scale,
        out,
        pairs,
        tiles,
        N=weight.out_features,
        K=weight.in_features,
        ENCODING=weight.encoding,
        HAS_OFFSETS=weight.offsets is not None,
        DTYPE=weight.operand,
        ROUTED=routing is not None,
        ROWS_OF_X=rows_of_x,
        SWIGLU=reader is not None,
        NEXT="" if reader is None else reader.encoding,
        NEXT_PREQUANT=reader is not None and reader.prequant_scale is not None,
        NEXT_PERMUTED=reader is not None and reader.permuted,
        X_DTYPE=weight.model_dtype,
        PERMUTED=weight.permuted,
        SPLITS=config.splits,
        BLOCK_N=config.rows,
        BLOCK_M=config.tokens,
        BLOCK_K=config.columns,
        TOKEN_TILES_TOGETHER=config.together,
        STAGES=config.stages,
        INTERPRETED=INTERPRETED,
        num_warps=config.warps,
    )
