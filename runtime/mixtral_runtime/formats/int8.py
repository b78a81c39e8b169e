"""Int8 weights, 16-bit activations (TensorRT-LLM's W8A16): symmetric, one scale per output channel."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats.base import FusedExperts, Linear, TensorSpec
from mixtral_runtime.formats.dense import gpu_takes, tiled_linear
from mixtral_runtime.formats.int8_layout import check_shape, from_kernel_layout, to_kernel_layout
from mixtral_runtime.kernels import cpu_path

VALUES_AT_ONCE = 1 << 18  # 1 MiB in float32: the temporaries stay in the cache; the result does not depend on it
# The largest float32 below one half. Adding it and truncating rounds half away from zero for every float32 up to 2^22;
# adding 0.5 itself would round 0.49999997 up, because the sum is rounded before it is truncated.
BELOW_HALF = 0.5 - 2.0**-25
KERNEL_MAX_IN = 65536  # `MAX_IN` of kernels/cpu/int8.h
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., out, in] of any float dtype -> (int8 [..., out, in], scales [..., out] in the weight's dtype).

    Bit for bit TensorRT-LLM's C++ `symmetric_quantize` (cutlass_preprocessors.cpp): amax / 128 in float32 (not 127),
    a true division by that unrounded scale, half away from zero, clamped to [-128, 127]. The stored scale is rounded
    to the weight's dtype; an all-zero channel gives zeros.
    """
    rows = weight.reshape(-1, weight.shape[-1])  # [channels, in]
    values = torch.empty(rows.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows.shape[0], dtype=weight.dtype, device=weight.device)
    if weight.device.type == "cpu" and weight.dtype in KERNEL_DTYPES and rows.numel() and cpu_path() != "none":
        torch.ops.mixtral_cpu.int8_quantize(rows.contiguous(), values, scales)
    else:
        _quantize_in_pytorch(rows, values, scales)
    return values.reshape(weight.shape), scales.reshape(weight.shape[:-1])


def _quantize_in_pytorch(rows: Tensor, values: Tensor, scales: Tensor) -> None:
    """rows [channels, in] -> values, scales [channels]."""
    threads = torch.get_num_threads()
    block_rows = max(1, -(-rows.shape[0] // (4 * threads)))
    blocks = [torch.split(tensor, block_rows) for tensor in (rows, values, scales)]
    try:
        # Whole blocks of rows to each thread: PyTorch's own would wait for each other after every operation, which on a
        # busy machine costs a hundred times what they save.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
            list(executor.map(_quantize_block, *blocks))
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()  # as in the caller, perhaps: threads do not inherit it
def _quantize_block(rows: Tensor, values: Tensor, scales: Tensor) -> None:
    """rows [channels, in] -> values, scales [channels]."""
    half = torch.tensor(BELOW_HALF, device=rows.device)
    step = max(1, VALUES_AT_ONCE // rows.shape[1])
    buffers = torch.empty(2, min(step, rows.shape[0]), rows.shape[1], device=rows.device)
    for start in range(0, rows.shape[0], step):
        count = min(step, rows.shape[0] - start)
        chunk, other = buffers[:, :count]
        chunk.copy_(rows[start : start + count])
        scale = torch.abs(chunk, out=other).amax(dim=-1) * (1 / 128)
        chunk.div_(scale.where(scale != 0, 1.0)[:, None])
        chunk.add_(torch.copysign(half, chunk, out=other))
        values[start : start + count] = chunk.clamp_(-128, 127)  # the conversion truncates
        scales[start : start + count] = scale


class Int8Linear:
    """weight int8 [out, in], `in` contiguous; scales [out] in the activations' dtype. In plain PyTorch.

    Which way a product is computed depends on device, dtype and the weight's shape, never on the number of rows.
    """

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        self.weight = weight
        self.scales = scales
        self.out_features, self.in_features = weight.shape

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return tiled_linear(x, self.dequantize(x.dtype))
        # torch's int8 kernel crashes on rows that its vectors do not divide, and has vectors for bfloat16 only:
        # in the other dtypes it takes ten times as long as converting the weight on each call.
        if x.dtype == torch.bfloat16 and self.in_features % 32 == 0 and x.shape[0] > 0:
            return torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scales)
        return (tiled_linear(x.float(), self.weight.float()) * self.scales.float()).to(x.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.float() * self.scales.float()[:, None]).to(dtype)


class Int8Kernel(Int8Linear):
    """The same through the CPU kernel: activations as fixed-point numbers of 16 bits (float32: 24) below the largest
    of their row, exact sums. So its bits are the same on every path of the kernels and for every number of rows."""

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        super().__init__(weight, scales)
        self._float_scales = scales.float()

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mixtral_cpu.int8_linear(x.contiguous(), self.weight, self._float_scales))


class Int8Gpu(Int8Linear):
    """The same through the GPU kernels: activations as they are, sums in float32."""

    @cached_property
    def _product(self) -> Callable[[Tensor], Tensor]:
        from mixtral_runtime.kernels.gpu.matmul import GpuLinear
        from mixtral_runtime.kernels.gpu.weights import int8_weight

        return GpuLinear(int8_weight(self.weight, self.scales, self.scales.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


class Int8Experts:
    """fc, proj: int8 [experts, out, in]; scales [experts, out] in the activations' dtype."""

    def __init__(self, fc: Tensor, fc_scales: Tensor, proj: Tensor, proj_scales: Tensor) -> None:
        self._weights = (fc, fc_scales.float(), proj, proj_scales.float())

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        routed = (x.contiguous(), experts.contiguous(), weights.contiguous())
        return cast(Tensor, torch.ops.mixtral_cpu.int8_experts(*routed, *self._weights))


def kernel_takes(weight: Tensor) -> bool:
    """Whether the CPU kernels multiply [..., out, in]. Longer rows could overflow their 32-bit sums."""
    return weight.device.type == "cpu" and weight.shape[-1] <= KERNEL_MAX_IN and cpu_path() != "none"


@dataclass(frozen=True, slots=True)
class Int8:
    """`--precision int8`. Each weight becomes `…weight` int8 and `…per_channel_scale` [..., out] in the model's dtype.

    layout "plain" keeps [..., out, in], which the PyTorch runtime maps from disk and multiplies as it is; "sm80" and
    "sm90" are TensorRT-LLM's kernel layouts with the declared shape [..., in, out]. Expert weights must have their
    experts dimension, because it decides the layout on SM90.
    """

    layout: str = "plain"
    name: str = "int8"
    quantization: dict[str, Any] = field(default_factory=lambda: {"quant_algo": "W8A16"})

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        *experts, out_features, in_features = shape
        stored = (*experts, out_features, in_features)
        if self.layout != "plain":
            check_shape(weight_name, out_features, in_features)
            stored = (*experts, in_features, out_features)
        return [
            TensorSpec(weight_name, stored, torch.int8),
            TensorSpec(_scale_name(weight_name), (*experts, out_features), dtype),
        ]

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        values, scales = quantize_rows(weight)
        return {weight_name: self._arrange(values, "plain"), _scale_name(weight_name): scales}

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        return {}

    def convert(self, weight: Tensor, layout: str) -> Tensor:
        """An int8 weight of another layout in this one's."""
        return self._arrange(weight, layout)

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        if self.layout != "plain":
            raise CheckpointError(
                f"the int8 weights are in the {self.layout} layout, the PyTorch runtime reads plain; "
                f"`mixtral-build engine CHECKPOINT_DIR ENGINE_DIR --runtime pytorch` converts them"
            )
        kind = Int8Kernel if kernel_takes(tensors["weight"]) else Int8Linear
        if gpu_takes(tensors["weight"], dtype):
            kind = Int8Gpu
        return kind(tensors["weight"].contiguous(), tensors["per_channel_scale"].to(dtype))

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        if gpu_takes(fc["weight"], dtype):
            from mixtral_runtime.kernels.gpu.experts import GpuExperts
            from mixtral_runtime.kernels.gpu.weights import int8_weight

            return GpuExperts(*(int8_weight(one["weight"], one["per_channel_scale"], dtype) for one in (fc, proj)))
        if not (kernel_takes(fc["weight"]) and kernel_takes(proj["weight"])):
            return None
        scales = [tensors["per_channel_scale"].to(dtype) for tensors in (fc, proj)]
        return Int8Experts(fc["weight"].contiguous(), scales[0], proj["weight"].contiguous(), scales[1])

    def _arrange(self, weight: Tensor, layout: str) -> Tensor:
        if layout == self.layout:
            return weight
        plain = weight if layout == "plain" else from_kernel_layout(weight, layout)
        return plain if self.layout == "plain" else to_kernel_layout(plain, self.layout)


def _scale_name(weight_name: str) -> str:
    return weight_name.removesuffix("weight") + "per_channel_scale"
