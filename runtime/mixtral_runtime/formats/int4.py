"""Signed 4-bit values in groups of 128 along `in`, stored two to a byte: what AWQ and GPTQ have in common."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.kernels import cpu_path

GROUP_SIZE = 128  # values of one row that share a scale; the only size that TensorRT-LLM's AWQ export and ours have
LOWEST, HIGHEST = -8, 7
VALUES_AT_ONCE = 1 << 18  # 1 MiB in float32: the temporaries stay in the cache; the result does not depend on it


def check_shape(name: str, out_features: int, in_features: int) -> None:
    """Raises InvalidArgument when a matrix has no whole groups or no whole bytes."""
    if in_features % GROUP_SIZE:
        raise InvalidArgument(
            f"{name} has {in_features} input features, 4-bit weights need a multiple of {GROUP_SIZE}; "
            f"use another precision"
        )
    if out_features % 2:
        raise InvalidArgument(f"{name} has {out_features} output features, 4-bit weights need an even number")


def pack(values: Tensor) -> Tensor:
    """int8 [..., out, in] from -8 to 7 -> int8 bytes [..., out / 2, in]; the low nibble is the even row's."""
    even, odd = values[..., 0::2, :], values[..., 1::2, :]
    return (even & 0x0F) | (odd << 4)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    rows = torch.stack((packed << 4 >> 4, packed >> 4), dim=-2)  # [..., out / 2, 2, in]; shifts keep the sign
    return rows.flatten(-3, -2)


def quantize_groups(weight: Tensor, prequant_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[..., out, in] of any float dtype -> (int8 [..., out, in], scales [..., out, in / 128] in the weight's dtype).

    prequant_scale [in]: what activations will be multiplied by, so weights are divided by it first. Symmetric, as
    modelopt: scale = amax / 7, round half to even, clamped to [-8, 7]. Values are divided by the scale as it is stored,
    which is the one that they will be multiplied by. A group of zeros gives zeros.
    """
    in_features = weight.shape[-1]
    rows = weight.reshape(-1, in_features)
    values = torch.empty(rows.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows.shape[0], in_features // GROUP_SIZE, dtype=weight.dtype, device=weight.device)
    divisor = None if prequant_scale is None else prequant_scale.float()
    step = max(1, VALUES_AT_ONCE // in_features)
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].float()
        if divisor is not None:
            chunk = chunk / divisor
        groups = chunk.view(len(chunk), -1, GROUP_SIZE)
        scale = (groups.abs().amax(dim=-1) / HIGHEST).to(weight.dtype)
        stored = scale.float()
        ratio = groups / stored.where(stored != 0, 1.0)[..., None]
        values[start : start + step] = ratio.round_().clamp_(LOWEST, HIGHEST).flatten(1)
        scales[start : start + step] = scale
    return values.view(weight.shape), scales.view(*weight.shape[:-1], -1)


def scale_groups(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers [out, in] times the scale of their group [out, in / 128] -> [out, in], rounded to `dtype` once."""
    groups = values.view(*scales.shape, GROUP_SIZE).to(dtype)
    return (groups * scales.to(dtype)[..., None]).flatten(1)


class KernelWeight(NamedTuple):
    """What the CPU kernels read of one weight, or of a stack of experts': int8 bytes [..., out / 2, in]; scales and
    offsets [..., out, in / 128], the offsets int8 or None for zeros; prequant_scale [..., in] in the activations' dtype
    or None. All contiguous."""

    weight: Tensor
    scales: Tensor
    offsets: Tensor | None = None
    prequant_scale: Tensor | None = None


def kernel_takes(weight: Tensor) -> bool:
    """Whether the CPU kernels multiply int8 bytes [..., out / 2, in]."""
    return weight.device.type == "cpu" and weight.is_contiguous() and cpu_path() != "none"


def kernel_linear(x: Tensor, weight: KernelWeight) -> Tensor:
    """[tokens, in] -> [tokens, out] in x's dtype.

    Activations become fixed-point numbers of 16 bits (float32: 32) below the largest of their group, so that a group's
    sum is exact. The bits are the same on every path of the kernels and for every number of rows.
    """
    return cast(Tensor, torch.ops.mixtral_cpu.int4_linear(x.contiguous(), *weight))


class KernelExperts:
    """FusedExperts of stacked weights. What lies between the two products is rounded to the activations' dtype once,
    and each expert's answer only when all are summed."""

    def __init__(self, fc: KernelWeight, proj: KernelWeight) -> None:
        self._weights = (*fc, *proj)

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        routed = (x.contiguous(), experts.contiguous(), weights.contiguous())
        return cast(Tensor, torch.ops.mixtral_cpu.int4_experts(*routed, *self._weights))
