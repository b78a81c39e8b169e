"""4-bit weights with zero points, 16-bit activations (TensorRT-LLM's W4A16_GPTQ): what AutoAWQ checkpoints become.

TensorRT-LLM's names and meaning: weight = value * weights_scaling_factor + zero. Ours differ from what its kernels read
in the arrangement alone: values packed as for AWQ [out / 2, in] and factors [out, in / 128], where it wants everything
transposed and the values in the kernel layout already in the checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mixtral_runtime.formats.base import FusedExperts, Linear, TensorSpec
from mixtral_runtime.formats.dense import gpu_takes, tiled_linear
from mixtral_runtime.formats.int4 import (
    GROUP_SIZE,
    LOWEST,
    KernelExperts,
    KernelWeight,
    check_shape,
    kernel_linear,
    kernel_takes,
    pack,
    scale_groups,
    unpack,
)

LEVELS = 15  # steps from the lowest to the highest of 16 values


class GptqLinear:
    """weight: int8 bytes [out / 2, in]; scales, zeros: [out, in / 128], zeros already multiplied by the scales. In
    plain PyTorch."""

    def __init__(self, weight: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight
        self.scales = scales.to(dtype)
        self._stored = (scales, zeros)
        self.out_features, self.in_features = 2 * weight.shape[0], weight.shape[1]

    @cached_property
    def offsets(self) -> Tensor:
        """int8 [out, in / 128]. Made when needed: experts that are multiplied all at once have their own."""
        return whole_zeros(*self._stored)

    def __call__(self, x: Tensor) -> Tensor:
        return tiled_linear(x, scale_groups(self._integers(), self.scales, x.dtype))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return scale_groups(self._integers(), self.scales, torch.float32).to(dtype)

    def _integers(self) -> Tensor:
        values = unpack(self.weight).view(*self.offsets.shape, GROUP_SIZE)
        return (values + self.offsets[..., None]).flatten(1)  # from -15 to 15


class GptqKernel(GptqLinear):
    """The same through the CPU kernel, which unpacks in registers and does not round a value times its scale."""

    def __call__(self, x: Tensor) -> Tensor:
        return kernel_linear(x, KernelWeight(self.weight, self.scales, self.offsets))


class GptqGpu(GptqLinear):
    """The same through the GPU kernels, which multiply sums of a group by its scale."""

    @cached_property
    def _product(self) -> Callable[[Tensor], Tensor]:
        from mixtral_runtime.kernels.gpu.matmul import GpuLinear
        from mixtral_runtime.kernels.gpu.weights import int4_weight

        return GpuLinear(int4_weight(self.weight, self.scales, self.scales.dtype, self.offsets))

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


def whole_zeros(scales: Tensor, zeros: Tensor) -> Tensor:
    """A zero is a whole number of scales, from -7 to 8. That number, int8, is restored here, so that values and zero
    are added exactly and the weight is rounded at most once, in the product with the scale."""
    return (zeros.float() / scales.float().where(scales != 0, 1.0)).round().to(torch.int8)


@dataclass(frozen=True, slots=True)
class Gptq:
    """`--precision awq` of a model that comes quantised by AutoAWQ. Each weight becomes `…weight` int8
    [..., out / 2, in], `…weights_scaling_factor` and `…zero` [..., out, in / 128] in the model's dtype."""

    name: str = "awq"
    layout: str | None = None
    quantization: dict[str, Any] = field(
        default_factory=lambda: {
            "quant_algo": "W4A16_GPTQ",
            "group_size": GROUP_SIZE,
            "pre_quant_scale": False,
            "has_zero_point": True,
        }
    )

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        *experts, out_features, in_features = shape
        check_shape(weight_name, out_features, in_features)
        stem = weight_name.removesuffix("weight")
        factors = (*experts, out_features, in_features // GROUP_SIZE)
        return [
            TensorSpec(weight_name, (*experts, out_features // 2, in_features), torch.int8),
            TensorSpec(f"{stem}weights_scaling_factor", factors, dtype),
            TensorSpec(f"{stem}zero", factors, dtype),
        ]

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        """Round to nearest between each group's extremes, with zero among them."""
        check_shape(weight_name, *weight.shape[-2:])
        groups = weight.float().view(*weight.shape[:-1], -1, GROUP_SIZE)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)  # [..., out, in / 128]
        scales = ((high - low) / LEVELS).to(weight.dtype)
        divisor = scales.float().where(scales != 0, 1.0)
        zero_points = (-low / divisor).round()
        values = ((groups / divisor[..., None]).round() + zero_points[..., None]).clamp(0, LEVELS).flatten(-2)
        return self.tensors(weight_name, values.to(torch.int8), zero_points, scales)

    def tensors(self, weight_name: str, values: Tensor, zero_points: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """values: int8 [..., out, in] and zero_points: [..., out, in / 128], both from 0 to 15; weight =
        (value - zero_point) * scale."""
        stem = weight_name.removesuffix("weight")
        return {
            weight_name: pack(values + LOWEST),
            f"{stem}weights_scaling_factor": scales,
            f"{stem}zero": ((-LOWEST - zero_points.float()) * scales.float()).to(scales.dtype),
        }

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        return {}

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        kind = GptqKernel if kernel_takes(tensors["weight"]) else GptqLinear
        if gpu_takes(tensors["weight"], dtype):
            kind = GptqGpu
        return kind(tensors["weight"], tensors["weights_scaling_factor"].contiguous(), tensors["zero"], dtype)

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        if gpu_takes(fc["weight"], dtype):
            from mixtral_runtime.kernels.gpu.experts import GpuExperts
            from mixtral_runtime.kernels.gpu.weights import int4_weight

            weights = (
                int4_weight(
                    one["weight"],
                    one["weights_scaling_factor"],
                    dtype,
                    whole_zeros(one["weights_scaling_factor"], one["zero"]),
                )
                for one in (fc, proj)
            )
            return GpuExperts(*weights)
        if not (kernel_takes(fc["weight"]) and kernel_takes(proj["weight"])):
            return None
        stacks = [
            KernelWeight(
                one["weight"],
                one["weights_scaling_factor"].to(dtype).contiguous(),
                whole_zeros(one["weights_scaling_factor"], one["zero"]).contiguous(),
            )
            for one in (fc, proj)
        ]
        return KernelExperts(*stacks)
