"""One weight, or a stack of experts', as the kernels of matrix products take it."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton.language as tl
from torch import Tensor

from mixtral_runtime.formats.int4 import GROUP_SIZE

Encoding = Literal["dense", "int8", "fp8", "int4"]
FP8_UNITS = 89  # the first SM that multiplies E4M3
WGMMA = 90  # the first SM whose matrix units take four warps' operands at once
PERMUTATION = 64  # columns within which `matmul_values.memory_column` exchanges places
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton reads it, when a kernel's module is imported
ACTIVATIONS = (torch.bfloat16, torch.float16)
_TRITON = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float8_e4m3fn: tl.float8e4nv,
}


@dataclass(frozen=True, slots=True)
class GpuWeight:
    """Everything contiguous and on one device.

    data: `dense` [experts, out, in] in `dtype`; `int8` the same shape in int8; `fp8` in E4M3; `int4` int8 bytes
    [experts, out / 2, in], the low nibble the even row's.
    scales: int8 [experts, out] float32; fp8 [experts] float32, that of the activations multiplied in; int4
    [experts, out, in / 128] in `dtype`; dense None.
    offsets: what is added to 4-bit values before their scale, int8 [experts, out, in / 128].
    prequant_scale: what AWQ multiplies activations by, [experts, in] in `dtype`.
    inverse_scale: what E4M3's activations are multiplied by before they are rounded, [1] float32.
    dtype: the model's. sm: compute capability, such as 90.
    """

    encoding: Encoding
    data: Tensor
    scales: Tensor | None
    dtype: torch.dtype
    sm: int
    offsets: Tensor | None = None
    prequant_scale: Tensor | None = None
    inverse_scale: Tensor | None = None

    @property
    def experts(self) -> int:
        return self.data.shape[0]

    @property
    def rows_per_stored(self) -> int:
        return 2 if self.encoding == "int4" else 1

    @property
    def out_features(self) -> int:
        return self.data.shape[1] * self.rows_per_stored

    @property
    def in_features(self) -> int:
        return self.data.shape[2]

    @property
    def permuted(self) -> bool:
        """Whether tiled products take activations in the order of `matmul_values.memory_column`: where the weight goes
        from shared memory through a conversion to Hopper's matrix units."""
        converted = self.encoding in ("int8", "int4")
        return converted and self.sm >= WGMMA and self.in_features % PERMUTATION == 0

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of the activations in memory that tiled products take."""
        if self.encoding != "fp8":
            return self.dtype
        return torch.float8_e4m3fn if self.sm >= FP8_UNITS else torch.float16

    @property
    def operand(self) -> Any:
        """The dtype in which the matrix units multiply, in Triton's terms."""
        return _TRITON[self.activation_dtype]

    @property
    def model_dtype(self) -> Any:
        return _TRITON[self.dtype]


def compute_capability(device: torch.device) -> int:
    """Such as 90. In the interpreter too, where everything can be tried as on an H100."""
    if device.type != "cuda":
        return WGMMA
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def dense_weight(weight: Tensor, sm: int | None = None) -> GpuWeight:
    """weight: [..., out, in] in the model's dtype."""
    return GpuWeight("dense", _stack(weight), None, weight.dtype, _sm(weight, sm))


def int8_weight(weight: Tensor, scales: Tensor, dtype: torch.dtype, sm: int | None = None) -> GpuWeight:
    """weight: int8 [..., out, in]; scales: [..., out]."""
    stack = _stack(weight)
    return GpuWeight("int8", stack, scales.float().reshape(stack.shape[:2]).contiguous(), dtype, _sm(weight, sm))


def fp8_weight(
    weight: Tensor, scales: Tensor, activation_scale: Tensor, *, dtype: torch.dtype, sm: int | None = None
) -> GpuWeight:
    """weight: E4M3 [..., out, in]; scales: one for each matrix, activation_scale: one, both float32 of any shape."""
    stack, sm = _stack(weight), _sm(weight, sm)
    factor = scales.float().reshape(-1) * activation_scale.float().reshape(-1)
    if sm < FP8_UNITS:  # the kernels read E4M3's bits as float16, a 256th of the value
        stack, factor = stack.view(torch.uint8), factor * 256
    inverse = activation_scale.float().reshape(-1).reciprocal()
    return GpuWeight("fp8", stack, factor.contiguous(), dtype, sm, inverse_scale=inverse)


def int4_weight(
    weight: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    offsets: Tensor | None = None,
    prequant_scale: Tensor | None = None,
    sm: int | None = None,
) -> GpuWeight:
    """weight: int8 bytes [..., out / 2, in]; scales, and int8 offsets: [..., out, in / 128]; prequant_scale: [..., in],
    of which a stack's experts must have the same if they read the same activations."""
    stack = _stack(weight)
    groups = (stack.shape[0], 2 * stack.shape[1], stack.shape[2] // GROUP_SIZE)
    return GpuWeight(
        "int4",
        stack,
        scales.to(dtype).reshape(groups).contiguous(),
        dtype,
        _sm(weight, sm),
        offsets=None if offsets is None else offsets.reshape(groups).contiguous(),
        prequant_scale=None
        if prequant_scale is None
        else prequant_scale.to(dtype).reshape(stack.shape[0], stack.shape[2]).contiguous(),
    )


def _stack(weight: Tensor) -> Tensor:
    return weight.contiguous().view(-1, *weight.shape[-2:])


def _sm(weight: Tensor, sm: int | None) -> int:
    return compute_capability(weight.device) if sm is None else sm
