"""The small steps of a layer, between its matrices: embedding lookup, residual sum, RMSNorm and routing, plain or by
kernels."""

from abc import ABC, abstractmethod
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.formats.dense import tiled_linear
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.kernels.availability import gpu_kernels_serve
from mixtral_runtime.pytorch.experts import route

MAX_EXPERTS = 64  # whose logits a GPU kernel holds


class LayerOps(Protocol):
    """Row i of every result depends on row i of its inputs alone, bit for bit. x, y: [tokens, hidden]."""

    def router(self, weight: Tensor) -> Tensor:
        """The router's weight [experts, hidden] float32 in the form that `route` reads fastest, the same numbers."""
        ...

    def embed_norm(
        self, token_ids: Tensor, embedding: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Rows of the embedding [vocab, hidden] in dtype, and their norm. token_ids: [tokens] int64."""
        ...

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in float32, returned in x's dtype. weight: [hidden]
        float32."""
        ...

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x + y in their dtype, and its norm."""
        ...

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        """What `experts.route` gives for the logits of `router`'s result."""
        ...

    def add_norm_route(
        self, x: Tensor, y: Tensor, weight: Tensor, router: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`add_norm`, and `route` of the norm."""
        ...


class ComposedOps(ABC):
    """What is several steps, one after the other."""

    def router(self, weight: Tensor) -> Tensor:
        return weight

    def embed_norm(
        self, token_ids: Tensor, embedding: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x = F.embedding(token_ids, embedding).to(dtype)
        return x, self.norm(x, weight)

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor) -> Tensor: ...

    @abstractmethod
    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]: ...

    def add_norm_route(
        self, x: Tensor, y: Tensor, weight: Tensor, router: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total, normed = self.add_norm(x, y, weight)
        return total, normed, *self.route(normed, router)


class PlainOps(ComposedOps):
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


class KernelOps(ComposedOps):
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


class GpuOps:
    """By the GPU kernels, each in one launch."""

    def __init__(self, epsilon: float, top_k: int) -> None:
        from mixtral_runtime.kernels.gpu import layer_ops as kernels  # Triton may not be installed elsewhere

        self._kernels = kernels
        self._epsilon = epsilon
        self._top_k = top_k

    def router(self, weight: Tensor) -> Tensor:
        return self._kernels.compact(weight)

    def embed_norm(
        self, token_ids: Tensor, embedding: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return self._kernels.embed_norm(token_ids, embedding, weight, self._epsilon, dtype)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._kernels.norm(x, weight, self._epsilon)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._kernels.add_norm(x, y, weight, self._epsilon)

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        return self._kernels.route(x, router, self._top_k)

    def add_norm_route(
        self, x: Tensor, y: Tensor, weight: Tensor, router: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._kernels.add_norm_route(x, y, weight, router, self._epsilon, self._top_k)


def layer_ops(epsilon: float, top_k: int, experts: int, device: torch.device) -> LayerOps:
    if gpu_kernels_serve(device) and experts <= MAX_EXPERTS:
        return GpuOps(epsilon, top_k)
    return KernelOps(epsilon, top_k) if kernels_serve(device) else PlainOps(epsilon, top_k)


def kernels_serve(device: torch.device) -> bool:
    return device.type == "cpu" and cpu_path() != "none"
