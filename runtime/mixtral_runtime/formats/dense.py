"""16-bit weights: stored as they are and multiplied as they are."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.formats.base import FusedExperts, Linear, TensorSpec
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.kernels.availability import gpu_kernels_serve

ROWS_PER_TILE = 16
GPU_DTYPES = (torch.bfloat16, torch.float16)
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def tiled_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, in] times weight [out, in] transposed -> [tokens, out], in tiles of exactly 16 rows.

    A matrix product picks its order of summation by the number of rows, so the same row gives other last bits in
    another batch. With one fixed shape per weight it cannot: the last tile is padded with zero rows.
    """
    tokens = x.shape[0]
    padded = F.pad(x, (0, 0, 0, -tokens % ROWS_PER_TILE))
    tiles = [F.linear(tile, weight) for tile in torch.split(padded, ROWS_PER_TILE)]
    return torch.cat(tiles)[:tokens] if tiles else x.new_empty(0, weight.shape[0])


class DenseLinear:
    """weight [out, in] in the activations' dtype. In plain PyTorch."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape

    def __call__(self, x: Tensor) -> Tensor:
        return tiled_linear(x, self.weight)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)


class DenseKernel(DenseLinear):
    """The same through the CPU kernel, which adds a row's products in one order whatever the number of rows."""

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mixtral_cpu.dense_linear(x.contiguous(), self.weight))


class DenseGpu(DenseLinear):
    """The same on a GPU, by its library: whatever the number of rows, one product."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class DenseExperts:
    """fc, proj: [experts, out, in] in the activations' dtype. What lies between the two products is rounded to it once,
    and each expert's answer only when all are summed."""

    def __init__(self, fc: Tensor, proj: Tensor) -> None:
        self._weights = (fc, proj)

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        routed = (x.contiguous(), experts.contiguous(), weights.contiguous())
        return cast(Tensor, torch.ops.mixtral_cpu.dense_experts(*routed, *self._weights))


def gpu_takes(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the GPU kernels multiply weights on this device by activations of `dtype`."""
    return dtype in GPU_DTYPES and gpu_kernels_serve(weight.device)


def kernel_takes(weight: Tensor) -> bool:
    """Whether the CPU kernels multiply [..., out, in]."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in KERNEL_DTYPES
        and weight.is_contiguous()
        and cpu_path() != "none"
    )


@dataclass(frozen=True, slots=True)
class Dense:
    """`--precision 16bit`: one tensor per weight, in the model's dtype."""

    name: str = "16bit"
    layout: str | None = None
    quantization: dict[str, Any] = field(default_factory=lambda: {"quant_algo": None})

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        return [TensorSpec(weight_name, shape, dtype)]

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        return {weight_name: weight}

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        return {}

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        weight = tensors["weight"].to(dtype)
        if gpu_takes(weight, dtype):
            return DenseGpu(weight)
        return DenseKernel(weight) if kernel_takes(weight) else DenseLinear(weight)

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        weights = [tensors["weight"].to(dtype) for tensors in (fc, proj)]
        if gpu_takes(weights[0], dtype):
            from mixtral_runtime.kernels.gpu.experts import GpuExperts
            from mixtral_runtime.kernels.gpu.weights import dense_weight

            return GpuExperts(*map(dense_weight, weights))
        return DenseExperts(*weights) if all(map(kernel_takes, weights)) else None
