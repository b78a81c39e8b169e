"""What a quantisation format is: one module with two halves, how weights are quantised and how they are multiplied."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one tensor of a checkpoint, known before any weight is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Linear(Protocol):
    """The multiply half: one loaded weight matrix of logical shape [out_features, in_features]."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out], in x's dtype. Row i of the result depends on row i of x alone, bit for bit:
        that is what makes a request's tokens independent of the batch it runs in. Not so on a GPU, where few rows and
        many take different kernels: there its last bits depend on the number of rows too, on nothing else."""
        ...

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight that is multiplied, [out, in]: the oracle of tests and quality measurements."""
        ...


class FusedExperts(Protocol):
    """All experts of one layer in one call, over their stacked tensors; only the chosen ones' weights are read."""

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x: [tokens, hidden]; experts int64 and weights float32: [tokens, top_k]. -> [tokens, hidden] in x's dtype: of
        each token's experts SwiGLU and down projection, times their weights, summed. Row i depends on row i of the
        three alone, bit for bit; on a GPU on their number too, as for Linear."""
        ...


class Format(Protocol):
    """One quantisation scheme. `weight_name` ends in `.weight`; shapes are TensorRT-LLM's [..., out, in]."""

    @property
    def name(self) -> str:
        """As given to --precision."""

    @property
    def layout(self) -> str | None:
        """How the stored bytes are arranged, where there is a choice."""

    @property
    def quantization(self) -> dict[str, Any]:
        """The fields of config.json's `quantization` object that this format sets."""

    def specs(self, weight_name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[TensorSpec]:
        """The tensors that replace one weight of `shape` [out, in] or [experts, out, in]; the weight itself first."""
        ...

    def quantize(self, weight_name: str, weight: Tensor) -> dict[str, Tensor]:
        """The same tensors by name, except `constants`, made from [out, in] or [experts, out, in] in the model's dtype;
        the experts may be some of them, so that one can be streamed at a time."""
        ...

    def constants(self, weight_name: str) -> dict[str, Tensor]:
        """Those tensors of `specs` that do not come from the weight but from calibration, each whole: the experts of a
        stacked weight share them, so they are written once."""
        ...

    def linear(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Linear:
        """A Linear over one matrix's tensors, keyed by suffix (`weight`, `per_channel_scale`, ...), on their device;
        `dtype` is that of the activations."""
        ...

    def fused_experts(self, fc: dict[str, Tensor], proj: dict[str, Tensor], dtype: torch.dtype) -> FusedExperts | None:
        """Over the stacked tensors of both matrices, keyed by suffix, on their device; fc has the up projection first,
        then the gate. None where no kernel takes them: then each expert's Linear objects are multiplied."""
        ...
