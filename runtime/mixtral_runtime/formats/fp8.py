"""FP8 weights and activations (TensorRT-LLM's FP8): E4M3 of Micikevicius et al. 2022, arXiv:2209.05433, symmetric, one
static scale per tensor. The names, shapes and the sharing of scales are those of NVIDIA ModelOpt 0.37's export."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from mixtral_runtime.formats.base import FusedExperts, Linear, TensorSpec
from mixtral_runtime.formats.dense import gpu_takes, tiled_linear
from mixtral_runtime.kernels import cpu_path

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0  # the largest finite value
VALUES_AT_ONCE = 1 << 22  # 16 MiB in float32
# TensorRT-LLM's own default list, spelled out as ModelOpt does.
EXCLUDED_MODULES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)


def scale_of(amax: Tensor) -> Tensor:
    """float32 amax / 448: what one unit of E4M3 stands for. 1 where amax is 0, because TensorRT-LLM divides by it."""
    scale = amax.float() / E4M3_MAX
    return scale.where(scale > 0, 1.0)


def to_e4m3(values: Tensor, scale: Tensor) -> Tensor:
    """Rounds values / scale to the nearest E4M3, ties to even, saturating at 448. NaN stays NaN."""
    return (values.float() / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)


def quantize_matrices(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., out, in] of any float dtype -> (E4M3 [..., out, in], scales [...] float32), one scale for each matrix."""
    matrices = weight.reshape(-1, *weight.shape[-2:])
    values = torch.empty(matrices.shape, dtype=E4M3, device=weight.device)
    scales = scale_of(torch.stack([torch.stack(torch.aminmax(matrix)).abs().max() for matrix in matrices]))
    step = max(1, VALUES_AT_ONCE // weight.shape[-1])  # rows
    for matrix, scale, target in zip(matrices, scales, values, strict=True):
        for start in range(0, len(matrix), step):
            rows = slice(start, start + step)
            target[rows] = to_e4m3(matrix[rows], scale)
    return values.view(weight.shape), scales.view(weight.shape[:-2])


class Fp8Linear:
    """weight: E4M3 [out, in]; weight_scale, activation_scale: [] float32. In plain PyTorch.

    The activations are rounded to E4M3 by the static scale, as on the GPU. Products of two E4M3 values are exact in
    float32, so only the sum is rounded.
    """

    def __init__(self, weight: Tensor, weight_scale: Tensor, activation_scale: Tensor) -> None:
        self.weight = weight
        self.weight_scale = weight_scale
        self.activation_scale = activation_scale
        self.out_features, self.in_features = weight.shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.multiply(x, tiled_linear)

    def multiply(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """product: of float32 [tokens, in] and [out, in] -> [tokens, out]."""
        rounded = to_e4m3(x, self.activation_scale).float()
        return (product(rounded, self.weight.float()) * (self.weight_scale * self.activation_scale)).to(x.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.float() * self.weight_scale).to(dtype)


class Fp8Kernel(Fp8Linear):
    """The same through the CPU kernel, which adds a row's products in one order whatever the number of rows."""

    def __call__(self, x: Tensor) -> Tensor:
        scales = (self.weight_scale, self.activation_scale)
        return cast(Tensor, torch.ops.mixtral_cpu.fp8_linear(x.contiguous(), self.weight, *scales))


class Fp8Gpu(Fp8Linear):
    """The same through the GPU kernels, for activations of `dtype`."""

    def __init__(self, weight: Tensor, weight_scale: Tensor, activation_scale: Tensor, *, dtype: torch.dtype) -> None:
        super().__init__(weight, weight_scale, activation_scale)
        self._dtype = dtype

    @cached_property
    def _product(self) -> Callable[[Tensor], Tensor]:
        from mixtral_runtime.kernels.gpu.matmul import GpuLinear
        from mixtral_runtime.kernels.gpu.weights import fp8_weight

        return GpuLinear(fp8_weight(self.weight, self.weight_scale, self.activation_scale, dtype=self._dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


class Fp8Experts:
    """FusedExperts of stacked weights: for fc and proj E4M3 [experts, out, in], its scales [experts, 1] and that of the
    activations [1], both float32. What lies between the two products is rounded to the activations' dtype once, then to
    E4M3; each expert's answer only when all are summed."""

    def __init__(self, *weights: Tensor) -> None:
        self._weights = weights

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        routed = (x.contiguous(), experts.contiguous(), weights.contiguous())
        return cast(Tensor, torch.ops.mixtral_cpu.fp8_experts(*routed, *self._weights))


def kernel_takes(weight: Tensor) -> bool:
    """Whether the CPU kernels multiply E4M3 [..., out, in]."""
    return weight.device.type == "cpu" and weight.is_contiguous() and cpu_path() != "none"


@dataclass(frozen=True, slots=True)
class Fp8:
    """`--precision fp8`. Each weight becomes `…weight` E4M3 [..., out, in], `…weights_scaling_factor` float32, [1] or
    [experts, 1], and `…activation_scaling_factor` float32 [1], which the experts share.

    What is concatenated in one weight (query, key and value; up and gate projection) shares its scale.
    activation_scales: [1] float32 by weight name, from calibration; only `constants` needs them.
    """

    activation_scales: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "fp8"
    layout: str | None = None
    quantization: dict[str, Any] = field(
        default_factory=lambda: {"quant_algo": "FP8", "exclude_modules": list(EXCLUDED_MODULES)}
    )

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        stem = weight_name.removesuffix("weight")
        return [
            TensorSpec(weight_name, shape, E4M3),
            TensorSpec(f"{stem}weights_scaling_factor", (*shape[:-2], 1), torch.float32),
            TensorSpec(f"{stem}activation_scaling_factor", (1,), torch.float32),
        ]

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        values, scales = quantize_matrices(weight)
        return {weight_name: values, f"{weight_name.removesuffix('weight')}weights_scaling_factor": scales[..., None]}

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        stem = weight_name.removesuffix("weight")
        return {f"{stem}activation_scaling_factor": self.activation_scales[weight_name]}

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        scales = [tensors[f"{name}_scaling_factor"].reshape(()) for name in ("weights", "activation")]
        if gpu_takes(tensors["weight"], dtype):
            return Fp8Gpu(tensors["weight"], *scales, dtype=dtype)
        kind = Fp8Kernel if kernel_takes(tensors["weight"]) else Fp8Linear
        return kind(tensors["weight"], *scales)

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        names = ("weight", "weights_scaling_factor", "activation_scaling_factor")
        if gpu_takes(fc["weight"], dtype):
            from mixtral_runtime.kernels.gpu.experts import GpuExperts
            from mixtral_runtime.kernels.gpu.weights import fp8_weight

            return GpuExperts(*(fp8_weight(*(one[name] for name in names), dtype=dtype) for one in (fc, proj)))
        if not (kernel_takes(fc["weight"]) and kernel_takes(proj["weight"])):
            return None
        return Fp8Experts(*(one[name].contiguous() for one in (fc, proj) for name in names))
