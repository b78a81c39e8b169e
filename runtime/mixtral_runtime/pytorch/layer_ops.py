"""The small steps of a layer, between its matrices: residual sum, RMSNorm and routing, plain or by CPU kernels."""

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.formats.dense import tiled_linear
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.pytorch.experts import route


class LayerOps(Protocol):
    """Row i of every result depends on row i of its inputs alone, bit for bit. x, y: [tokens, hidden]."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in float32, returned in x's dtype. weight: [hidden]
        float32."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x + y in their dtype, and its norm."""
        ...

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        """What `experts.route` gives for the logits of router [experts, hidden] float32."""
        ...


class PlainOps:
    """In PyTorch's own operations, on any device."""

    def __init__(self, epsilon: float, top_k: int) -> None:
        self._epsilon = epsilon
        self._top_k = top_k

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, self._epsilon).to(x.dtype)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return total, self.norm(total, weight)

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        return route(tiled_linear(x.float(), router), self._top_k)


class KernelOps:
    """By the CPU kernels, each in one call."""

    def __init__(self, epsilon: float, top_k: int) -> None:
        self._epsilon = epsilon
        self._top_k = top_k

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mixtral_cpu.rms_norm(x, weight, self._epsilon))

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], torch.ops.mixtral_cpu.add_rms_norm(x, y, weight, self._epsilon))

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], torch.ops.mixtral_cpu.route(x, router, self._top_k))


def layer_ops(epsilon: float, top_k: int, device: torch.device) -> LayerOps:
    return KernelOps(epsilon, top_k) if kernels_serve(device) else PlainOps(epsilon, top_k)


def kernels_serve(device: torch.device) -> bool:
    return device.type == "cpu" and cpu_path() != "none"
