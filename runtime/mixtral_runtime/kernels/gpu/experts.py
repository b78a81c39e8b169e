"""The mixture of experts on the GPU: each chosen expert's weights are read once, the others' never."""

import torch
from torch import Tensor

from mixtral_runtime.kernels.gpu.matmul import Choice, one_token, one_token_swiglu, tiled, tiled_swiglu
from mixtral_runtime.kernels.gpu.matmul_config import one_by_one, tile_config
from mixtral_runtime.kernels.gpu.matmul_prepare import prepare
from mixtral_runtime.kernels.gpu.matmul_sum import sum_parts
from mixtral_runtime.kernels.gpu.routing import route_pairs
from mixtral_runtime.kernels.gpu.weights import GpuWeight


class GpuExperts:
    """FusedExperts of stacked weights. What lies between the two products is rounded to the activations' dtype once
    (for FP8 then to E4M3), and each expert's answer only when all are summed, in fixed order."""

    def __init__(self, fc: GpuWeight, proj: GpuWeight) -> None:
        self._fc = fc
        self._proj = proj

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        tokens, top_k = experts.shape
        fc, proj = self._fc, self._proj
        if tokens == 0:
            return torch.empty_like(x)
        x, weights = x.contiguous(), weights.contiguous()
        if one_by_one(fc, tokens):
            choice = Choice(experts.contiguous(), weights)
            inner = one_token_swiglu(x, fc, choice, proj)
            return one_token(inner, proj, choice, 1, prepared=True)
        each = -(-tokens * top_k // fc.experts)
        fc_config, proj_config = tile_config(fc, each, swiglu=True), tile_config(proj, each, swiglu=False)
        routing = route_pairs(experts, fc.experts, fc_config.tokens)
        inner = tiled_swiglu(prepare(x, fc), fc, routing, fc_config, top_k, proj)
        answers = tiled(inner, proj, routing, proj_config, 1, routing.pairs)
        return sum_parts(answers, weights, x.dtype)
