"""Activation-aware weight quantisation: which input channels to enlarge before 4-bit rounding.

Lin et al. 2023, arXiv:2306.00978: large activations make the rounding errors of their channel's weights count more. So
weights are multiplied by s = mean|x|^alpha per input channel, and activations divided by it; alpha, between 0 (plain
rounding) and 1, is what makes the error of the outputs smallest. All matrices that read the same input share one s, and
all experts of a layer do, because TensorRT-LLM keeps one `prequant_scaling_factor` (1 / s) for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import HiddenStates, Samples, run_layers
from mixtral_runtime.formats import Linear
from mixtral_runtime.formats.int4 import quantize_groups, scale_groups
from mixtral_runtime.pytorch.model import Layer

ALPHAS = tuple(step / 20 for step in range(21))
KEPT_ROWS = 256  # of a matrix's inputs; all candidates are compared on the same ones, so more hardly change the choice
COMPARED_ROWS = 512  # of its outputs: evenly spaced ones stand for the many of a large matrix
LARGEST_FACTOR = 1024.0  # keeps 1 / s among the normal numbers of float16
SEED = 0

EXPERT_TOKENS = "expert_tokens"  # names of tensors in the stored result
FIGURES = ".figures"

PARTS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")


@dataclass(frozen=True, slots=True)
class ScaleChoice:
    """prequant_scale: [in], what activations are multiplied by, in the model's dtype. error and rounding_error: mean
    squared error of an output element on the calibration activations, with it and with plain rounding."""

    prequant_scale: Tensor
    alpha: float
    error: float
    rounding_error: float


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """choices: by weight name. expert_tokens: [layers, experts] int64, how many tokens each expert saw."""

    choices: dict[str, ScaleChoice]
    expert_tokens: Tensor

    def prequant_scales(self) -> dict[str, Tensor]:
        """As `mixtral_runtime.formats.awq.Awq` takes them."""
        return {name: choice.prequant_scale for name, choice in self.choices.items()}

    def error_ratio(self) -> float:
        """The mean over all weights of the output error as a share of plain rounding's."""
        ratios = [c.error / c.rounding_error for c in self.choices.values() if c.rounding_error > 0]
        return sum(ratios) / len(ratios) if ratios else 1.0

    def to_tensors(self) -> dict[str, Tensor]:
        tensors = {EXPERT_TOKENS: self.expert_tokens}
        for name, choice in self.choices.items():
            figures = [choice.alpha, choice.error, choice.rounding_error]
            tensors |= {name: choice.prequant_scale, name + FIGURES: torch.tensor(figures, dtype=torch.float64)}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        figures = {name: tensor for name, tensor in tensors.items() if name.endswith(FIGURES)}
        found = {name.removesuffix(FIGURES): tensor.tolist() for name, tensor in figures.items()}
        choices = {name: ScaleChoice(tensors[name], *numbers) for name, numbers in found.items()}
        return cls(choices, tensors[EXPERT_TOKENS])


class InputSample:
    """A matrix's inputs as calibration shows them: mean absolute value of each channel, and some rows.

    The rows are a uniform sample of all that were added, the same for every way of cutting them into chunks: those
    with the smallest of random keys (Efraimidis and Spirakis 2006, with equal weights).
    """

    def __init__(self, kept_rows: int = KEPT_ROWS) -> None:
        self.count = 0
        self._kept_rows = kept_rows
        self._generator = torch.Generator().manual_seed(SEED)
        self._abs_sum: Tensor | None = None  # [in] float64
        self._rows: Tensor | None = None  # [rows, in]
        self._keys = torch.empty(0)

    def add(self, x: Tensor) -> None:
        """x: [tokens, in]; nothing of it is kept but copies."""
        abs_sum = x.abs().sum(dim=0, dtype=torch.float64)
        keys = torch.rand(len(x), generator=self._generator)
        if self._rows is None or self._abs_sum is None:
            self._abs_sum, self._rows = abs_sum, x[:0]
        else:
            self._abs_sum = self._abs_sum + abs_sum
        self.count += len(x)
        keys = torch.cat([self._keys, keys])
        chosen = keys.argsort(stable=True)[: self._kept_rows].sort().values
        old, new = chosen[chosen < len(self._keys)], chosen[chosen >= len(self._keys)] - len(self._keys)
        self._rows = torch.cat([self._rows[old.to(x.device)], x[new.to(x.device)]])
        self._keys = keys[chosen]

    @property
    def abs_sum(self) -> Tensor:
        """[in] float64."""
        assert self._abs_sum is not None
        return self._abs_sum

    @property
    def rows(self) -> Tensor:
        """[rows, in] in the dtype of the activations."""
        assert self._rows is not None
        return self._rows


def prequant_scale(mean_abs: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """1 / s for each channel, [in] in `dtype`. mean_abs: [in]. s has the middle 1 between its extremes, so that neither
    weights nor activations leave their range; alpha 0 gives ones."""
    # A channel that is never used must not become infinitely small.
    s = mean_abs.double().clamp(min=mean_abs.max().item() * 1e-6).pow(alpha)
    s = s / (s.max() * s.min()).sqrt()
    return s.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR).reciprocal().to(dtype)


def output_error(weight: Tensor, prequant_scale: Tensor, inputs: Tensor) -> float:
    """Mean squared error of inputs [rows, in] times weight [out, in] transposed, when the weight is quantised."""
    values, scales = quantize_groups(weight, prequant_scale)
    difference = scale_groups(values, scales, torch.float32) * prequant_scale.float() - weight.float()
    return (inputs.float() @ difference.T).square().mean().item()


def choose_scale(weights: Sequence[Linear], inputs: Sequence[InputSample], dtype: torch.dtype) -> ScaleChoice:
    """The best common scale of matrices of the same shape, each with its own inputs. dtype: the model's.

    Errors count as often as their matrix was used; one whose inputs are empty has no say.
    """
    used = [(linear, sample) for linear, sample in zip(weights, inputs, strict=True) if sample.count]
    total = sum(sample.count for _, sample in used)
    abs_sum = torch.stack([sample.abs_sum for _, sample in used]).sum(dim=0)
    scales = {alpha: prequant_scale(abs_sum / total, alpha, dtype) for alpha in ALPHAS}
    errors = dict.fromkeys(ALPHAS, 0.0)
    for linear, sample in used:
        weight = linear.dequantize(dtype)
        weight = weight[:: max(1, len(weight) // COMPARED_ROWS)]
        for alpha, scale in scales.items():
            errors[alpha] += output_error(weight, scale, sample.rows) * sample.count / total
    best = min(ALPHAS, key=errors.__getitem__)
    return ScaleChoice(scales[best].cpu(), best, errors[best], errors[0.0])


def search_scales(
    source: LayerSource,
    samples: Samples,
    dtype: torch.dtype,
    progress: Callable[[int, int], object] | None = None,
) -> ScaleSearch:
    """dtype: that of the checkpoint's scales. progress: called with the layers done and their total.

    Memory: one layer, a chunk of activations, and KEPT_ROWS inputs of each matrix of the layer.
    """
    layers, experts = source.config.num_hidden_layers, source.config.moe.num_experts
    seen: dict[str, list[InputSample]] = {}
    choices: dict[str, ScaleChoice] = {}
    expert_tokens = torch.zeros(layers, experts, dtype=torch.int64)

    def forget() -> None:
        seen.update({part: [InputSample() for _ in range(experts if "mlp" in part else 1)] for part in PARTS})

    def observe(layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        if name in PARTS:
            seen[name][expert or 0].add(x)

    def on_layer(index: int, layer: Layer, states: HiddenStates) -> None:
        matrices = dict(zip(PARTS, ([layer.qkv], [layer.dense], layer.experts.fc, layer.experts.proj), strict=True))
        for part, linears in matrices.items():
            choices[f"transformer.layers.{index}.{part}.weight"] = choose_scale(linears, seen[part], dtype)
        expert_tokens[index] = torch.tensor([sample.count for sample in seen["mlp.fc"]])
        forget()

    forget()
    run_layers(source, samples, observe=observe, on_layer=on_layer, progress=progress)
    return ScaleSearch(choices, expert_tokens)
