"""Stacks of random expert weights in the formats of 8 floating-point and of 4 bits, as kernels and as plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mixtral_runtime.formats import Linear
from mixtral_runtime.formats.awq import Awq, AwqLinear
from mixtral_runtime.formats.base import Format, FusedExperts
from mixtral_runtime.formats.fp8 import Fp8, Fp8Linear
from mixtral_runtime.formats.gptq import Gptq, GptqLinear

FORMATS = ("fp8", "awq", "gptq")
PLAIN: dict[str, Callable[..., Tensor]] = {
    "fp8": Fp8Linear.__call__,
    "awq": AwqLinear.__call__,
    "gptq": GptqLinear.__call__,
}
ACTIVATION_SCALE = 3 / 448  # a few of the activations that tests draw saturate


@dataclass(frozen=True)
class Stack:
    """Weights [experts, out, in] of one format; `tensors` by suffix, as the checkpoint has them."""

    name: str
    tensors: dict[str, Tensor]
    experts: int

    @property
    def format(self) -> Format:
        return {"fp8": Fp8(), "awq": Awq(), "gptq": Gptq()}[self.name]  # type: ignore[return-value]

    def expert(self, index: int) -> dict[str, Tensor]:
        shared = "activation_scaling_factor"
        return {suffix: tensor if suffix == shared else tensor[index] for suffix, tensor in self.tensors.items()}

    def linear(self, dtype: torch.dtype, expert: int = 0) -> Linear:
        return self.format.linear(self.expert(expert), dtype)

    def plain(self, dtype: torch.dtype, expert: int = 0) -> Linear:
        """The same weight multiplied by plain PyTorch, even where there are kernels."""
        return PlainLinear(self.linear(dtype, expert), PLAIN[self.name])

    def with_tensor(self, suffix: str, change: Callable[[Tensor], Tensor]) -> "Stack":
        return replace(self, tensors=self.tensors | {suffix: change(self.tensors[suffix].clone())})


class PlainLinear:
    def __init__(self, linear: Linear, call: Callable[..., Tensor]) -> None:
        self._linear = linear
        self._call = call
        self.out_features, self.in_features = linear.out_features, linear.in_features

    def __call__(self, x: Tensor) -> Tensor:
        return self._call(self._linear, x)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self._linear.dequantize(dtype)


def make_stack(name: str, experts: int, out_features: int, in_features: int, seed: int = 0) -> Stack:
    """bfloat16 weights of about 0.1, quantised as the build does it; AWQ with factors from 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(experts, out_features, in_features, generator=generator) * 0.1).bfloat16()
    factors = torch.linspace(0.3, 3, in_features).bfloat16()
    formats: dict[str, Any] = {
        "fp8": Fp8({"a.weight": torch.tensor([ACTIVATION_SCALE])}),
        "awq": Awq({"a.weight": factors}),
        "gptq": Gptq(),
    }
    tensors = formats[name].quantize("a.weight", weight) | formats[name].constants("a.weight")
    return Stack(name, {suffix.removeprefix("a."): tensor for suffix, tensor in tensors.items()}, experts)


@cache
def random_stack(name: str, out_features: int, in_features: int) -> Stack:
    """One expert of any size, from random bytes: quick to make."""
    generator = torch.Generator().manual_seed(1)
    if name == "fp8":
        stored = torch.randint(-128, 128, (1, out_features, in_features), dtype=torch.int8, generator=generator)
        stored[(stored & 127) == 127] = 0  # not a number
        tensors = {
            "weight": stored.view(torch.float8_e4m3fn),
            "weights_scaling_factor": torch.tensor([[0.001]]),
            "activation_scaling_factor": torch.tensor([ACTIVATION_SCALE]),
        }
        return Stack(name, tensors, 1)
    stored = torch.randint(-128, 128, (1, out_features // 2, in_features), dtype=torch.int8, generator=generator)
    scales = (torch.rand(1, out_features, in_features // 128, generator=generator) * 0.01 + 0.001).bfloat16()
    tensors = {"weight": stored, "weights_scaling_factor": scales}
    if name == "awq":
        tensors["prequant_scaling_factor"] = torch.linspace(0.3, 3, in_features).bfloat16()[None]
    else:
        zeros = torch.randint(-7, 9, scales.shape, generator=generator)
        tensors["zero"] = (zeros * scales.float()).bfloat16()
    return Stack(name, tensors, 1)


def fused(fc: Stack, proj: Stack, dtype: torch.dtype) -> FusedExperts:
    made = fc.format.fused_experts(fc.tensors, proj.tensors, dtype)
    assert made is not None
    return made
