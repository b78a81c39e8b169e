"""Products of activations with one weight, or with the experts' weights that they chose: which kernel, and its call."""

import torch
import triton
from torch import Tensor

from mixtral_runtime.kernels.gpu.matmul_config import TileConfig, tile_config
from mixtral_runtime.kernels.gpu.matmul_prepare import prepare
from mixtral_runtime.kernels.gpu.matmul_sum import sum_parts
from mixtral_runtime.kernels.gpu.matmul_tiles import tiled_product
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


def tiled_swiglu(x: Tensor, weight: GpuWeight, routing: Routing, config: TileConfig, top_k: int, reader: GpuWeight) -> Tensor:
    """x: [tokens, in] as `prepare` leaves it -> [pairs, out / 2] as `prepare` would leave it for `reader`, which is
    multiplied next."""
    shape = (routing.pairs, weight.out_features // 2)
    out = torch.empty(shape, dtype=reader.activation_dtype, device=x.device)
    _launch(x, weight, routing, config, top_k, routing.pairs, out, reader)
    return out


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
