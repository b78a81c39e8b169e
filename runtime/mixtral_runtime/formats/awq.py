"""Activation-aware 4-bit weights, 16-bit activations (TensorRT-LLM's W4A16_AWQ): Lin et al. 2023, arXiv:2306.00978.

Input channels that carry large activations are made larger in the weight before it is rounded, and smaller in the
activations by the same factor. Which factors, `mixtral_build.awq_search` finds out; without them it is plain rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mixtral_runtime.formats.base import FusedExperts, Linear, TensorSpec
from mixtral_runtime.formats.dense import gpu_takes, tiled_linear
from mixtral_runtime.formats.int4 import (
    GROUP_SIZE,
    KernelExperts,
    KernelWeight,
    check_shape,
    kernel_linear,
    kernel_takes,
    pack,
    quantize_groups,
    scale_groups,
    unpack,
)


class AwqLinear:
    """weight: int8 bytes [out / 2, in]; scales: [out, in / 128] and prequant_scale: [in] in the activations' dtype. In
    plain PyTorch.

    The weight is expanded on each call: kept expanded it would need four times the memory.
    """

    def __init__(self, weight: Tensor, scales: Tensor, prequant_scale: Tensor) -> None:
        self.weight = weight
        self.scales = scales
        self.prequant_scale = prequant_scale
        self.out_features, self.in_features = 2 * weight.shape[0], weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return tiled_linear(x * self.prequant_scale, scale_groups(unpack(self.weight), self.scales, x.dtype))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        matrix = scale_groups(unpack(self.weight), self.scales, torch.float32)
        return (matrix * self.prequant_scale.float()).to(dtype)


class AwqKernel(AwqLinear):
    """The same through the CPU kernel, which unpacks in registers and does not round a value times its scale."""

    def __call__(self, x: Tensor) -> Tensor:
        return kernel_linear(x, KernelWeight(self.weight, self.scales, prequant_scale=self.prequant_scale))


class AwqGpu(AwqLinear):
    """The same through the GPU kernels, which multiply sums of a group by its scale."""

    @cached_property
    def _product(self) -> Callable[[Tensor], Tensor]:
        from mixtral_runtime.kernels.gpu.matmul import GpuLinear
        from mixtral_runtime.kernels.gpu.weights import int4_weight

        weight = int4_weight(self.weight, self.scales, self.scales.dtype, prequant_scale=self.prequant_scale)
        return GpuLinear(weight)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


@dataclass(frozen=True, slots=True)
class Awq:
    """`--precision awq`. Each weight becomes `…weight` int8 [..., out / 2, in], `…weights_scaling_factor`
    [..., out, in / 128] and `…prequant_scaling_factor` [..., in], the last two in the model's dtype.

    prequant_scales: [in] by weight name, in the model's dtype, for all experts the same because TensorRT-LLM reads one
    expert's only; a weight that is not named is rounded as it is.
    """

    prequant_scales: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "awq"
    layout: str | None = None
    quantization: dict[str, Any] = field(
        default_factory=lambda: {
            "quant_algo": "W4A16_AWQ",
            "group_size": GROUP_SIZE,
            "pre_quant_scale": True,
            "has_zero_point": False,
        }
    )

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        *experts, out_features, in_features = shape
        check_shape(weight_name, out_features, in_features)
        stem = weight_name.removesuffix("weight")
        return [
            TensorSpec(weight_name, (*experts, out_features // 2, in_features), torch.int8),
            TensorSpec(f"{stem}weights_scaling_factor", (*experts, out_features, in_features // GROUP_SIZE), dtype),
            TensorSpec(f"{stem}prequant_scaling_factor", (*experts, in_features), dtype),
        ]

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        *experts, out_features, in_features = weight.shape
        check_shape(weight_name, out_features, in_features)
        stem = weight_name.removesuffix("weight")
        prequant_scale = self.prequant_scales.get(weight_name)
        values, scales = quantize_groups(weight, prequant_scale)
        if prequant_scale is None:
            prequant_scale = torch.ones(in_features)
        return {
            weight_name: pack(values),
            f"{stem}weights_scaling_factor": scales,
            f"{stem}prequant_scaling_factor": prequant_scale.to(weight).expand(*experts, in_features),
        }

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        return {}

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        kind = AwqKernel if kernel_takes(tensors["weight"]) else AwqLinear
        if gpu_takes(tensors["weight"], dtype):
            kind = AwqGpu
        return kind(
            tensors["weight"],
            tensors["weights_scaling_factor"].to(dtype),
            tensors["prequant_scaling_factor"].to(dtype),
        )

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        if gpu_takes(fc["weight"], dtype):
            return _gpu_experts(fc, proj, dtype)
        if not (kernel_takes(fc["weight"]) and kernel_takes(proj["weight"])):
            return None
        stacks = [
            KernelWeight(
                one["weight"],
                one["weights_scaling_factor"].to(dtype).contiguous(),
                prequant_scale=one["prequant_scaling_factor"].to(dtype).contiguous(),
            )
            for one in (fc, proj)
        ]
        return KernelExperts(*stacks)


def _gpu_experts(fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
    """None where experts scale the same activations by different factors, which no build of ours makes."""
    from mixtral_runtime.kernels.gpu.experts import GpuExperts
    from mixtral_runtime.kernels.gpu.weights import int4_weight

    factors = fc["prequant_scaling_factor"]
    if not torch.equal(factors, factors[:1].expand_as(factors)):
        return None
    weights = (
        int4_weight(
            one["weight"],
            one["weights_scaling_factor"],
            dtype,
            prequant_scale=one["prequant_scaling_factor"],
        )
        for one in (fc, proj)
    )
    return GpuExperts(*weights)
