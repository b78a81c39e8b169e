"""Weights of every encoding for the GPU kernels, and what their products are in float64."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from low_bit_weights import make_stack
from torch import Tensor

from mixtral_runtime.formats.fp8 import to_e4m3
from mixtral_runtime.formats.gptq import whole_zeros
from mixtral_runtime.kernels.gpu.weights import GpuWeight, dense_weight, fp8_weight, int4_weight, int8_weight

ENCODINGS = ("16bit", "int8", "fp8", "awq", "gptq")
# ‖found - exact‖ / ‖exact‖. The interpreter cuts a bfloat16 off where a GPU rounds it, and AWQ's activations are
# rounded once more.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Example:
    """exact: float64 [experts, out, in]; activation_scale: of E4M3's."""

    weight: GpuWeight
    exact: Tensor
    activation_scale: Tensor | None = None

    def multiply(self, x: Tensor, expert: int = 0) -> Tensor:
        """x: [..., in] float64 values of the model's dtype -> [..., out] float64."""
        if self.activation_scale is not None:
            x = to_e4m3(x.float(), self.activation_scale).double() * self.activation_scale.double()
        return x @ self.exact[expert].T


def example(
    name: str, experts: int, out_features: int, in_features: int, dtype: torch.dtype, sm: int, seed: int = 0
) -> Example:
    """Random values of about 0.1, as the build quantises them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (experts, out_features, in_features)
    if name == "16bit":
        plain = (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        return Example(dense_weight(plain, sm), plain.double())
    if name == "int8":
        values = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        scales = ((torch.rand(shape[:2], generator=generator) + 0.5) / 800).to(dtype)
        return Example(int8_weight(values, scales, dtype, sm), values.double() * scales.double()[..., None])
    stack = make_stack(name, *shape, seed)
    tensors = stack.tensors
    stored, scales = tensors["weight"], tensors["weights_scaling_factor"]
    exact = torch.stack([stack.plain(torch.float32, i).dequantize(torch.float64) for i in range(experts)])
    if name == "fp8":
        activation_scale = tensors["activation_scaling_factor"]
        return Example(fp8_weight(stored, scales, activation_scale, dtype=dtype, sm=sm), exact, activation_scale)
    if name == "awq":
        return Example(int4_weight(stored, scales, dtype, None, tensors["prequant_scaling_factor"], sm), exact)
    return Example(int4_weight(stored, scales, dtype, whole_zeros(scales, tensors["zero"]), None, sm), exact)


def mixture(fc: Example, proj: Example, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """In float64, but what lies between the products is rounded to x's dtype. -> [tokens, hidden]."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    for token, slot in torch.cartesian_prod(torch.arange(len(x)), torch.arange(experts.shape[1])).tolist():
        expert = int(experts[token, slot])
        up, gate = fc.multiply(x[token].double(), expert).chunk(2)
        inner = (F.silu(gate) * up).to(x.dtype).double()
        total[token] += proj.multiply(inner, expert) * weights[token, slot].double()
    return total


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
