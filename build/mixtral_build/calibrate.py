"""FP8 calibration: the largest magnitudes that a model's activations reach on a set of samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import Samples, run_layers
from mixtral_runtime.formats.fp8 import scale_of
from mixtral_runtime.tensor_names import KV_RECIPROCAL_SCALE, KV_SCALE

LINEARS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")
EXPERT_LINEARS = ("mlp.fc", "mlp.proj")
CACHED = ("attention.keys", "attention.values")


@dataclass(frozen=True, slots=True)
class Calibration:
    """linear_amax: [layers, LINEARS] float32, of each linear's input; of the experts' the largest over all experts, so
    that one which saw no token takes the maximum of the others. kv_amax: [layers] float32, of keys (rotated) and
    values. expert_tokens: [layers, experts] int64, how many tokens each expert saw."""

    linear_amax: Tensor
    kv_amax: Tensor
    expert_tokens: Tensor

    def activation_scales(self) -> dict[str, Tensor]:
        """[1] float32 by the name of the weight, as `mixtral_runtime.formats.fp8.Fp8` takes them."""
        return {
            f"transformer.layers.{layer}.{name}.weight": scale_of(row[i : i + 1])
            for layer, row in enumerate(self.linear_amax)
            for i, name in enumerate(LINEARS)
        }

    def kv_scales(self) -> dict[str, Tensor]:
        """[1] float32 by the name of the tensor: amax / 448, at least 1 as in NVIDIA ModelOpt, and its reciprocal.

        The floor keeps values below 448 at E4M3's own precision, which is relative: a smaller scale would gain
        precision only for values that round to E4M3's subnormal ones.
        """
        scales: dict[str, Tensor] = {}
        for layer, amax in enumerate(self.kv_amax):
            scale = scale_of(amax[None]).clamp(min=1.0)
            scales[f"transformer.layers.{layer}.attention.{KV_SCALE}"] = scale
            scales[f"transformer.layers.{layer}.attention.{KV_RECIPROCAL_SCALE}"] = 1 / scale
        return scales

    def unseen_experts(self) -> list[str]:
        """Those that saw no token, such as "layer 3 expert 5"."""
        return unseen_experts(self.expert_tokens)

    def to_tensors(self) -> dict[str, Tensor]:
        return {"linear_amax": self.linear_amax, "kv_amax": self.kv_amax, "expert_tokens": self.expert_tokens}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(**tensors)


def calibrate(
    source: LayerSource, samples: Samples, progress: Callable[[int, int], object] | None = None
) -> Calibration:
    """One pass over the model, layer by layer. progress: called with the layers done and their total."""
    config = source.config
    linear_amax = torch.zeros(config.num_hidden_layers, len(LINEARS))
    kv_amax = torch.zeros(config.num_hidden_layers)
    expert_tokens = torch.zeros(config.num_hidden_layers, config.moe.num_experts, dtype=torch.int64)

    def observe(layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        if name in LINEARS:
            _raise_to(linear_amax[layer, LINEARS.index(name)], x)
        elif name in CACHED:
            _raise_to(kv_amax[layer], x)
        if name == EXPERT_LINEARS[0]:
            expert_tokens[layer, expert] += len(x)

    run_layers(source, samples, observe=observe, progress=progress)
    return Calibration(linear_amax, kv_amax, expert_tokens)


def unseen_experts(expert_tokens: Tensor) -> list[str]:
    """expert_tokens: [layers, experts]."""
    return [f"layer {layer} expert {expert}" for layer, expert in (expert_tokens == 0).nonzero().tolist()]


def _raise_to(largest: Tensor, x: Tensor) -> None:
    """largest: [] float32, a view that is changed."""
    largest.copy_(torch.maximum(largest, torch.stack(torch.aminmax(x)).abs().max().float().cpu()))
