"""What quantising changed: two models on the same text, walked layer by layer side by side."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import HiddenStates, walk_layers
from mixtral_build.linear_around import LinearAround
from mixtral_build.model_directory import ModelDirectory
from mixtral_build.windows import Windows, cut_into_windows, predictions
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import Linear
from mixtral_runtime.pytorch.experts import route
from mixtral_runtime.pytorch.model import Layer

SAME_DIMENSIONS = ("vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size")


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """routing_agreement: share of tokens that the router sends to the same set of experts in both. output_error: of the
    hidden states after the layer, |B - A| / |A| (Frobenius). weight_error: the same of the weights that are
    multiplied, by linear; of `mlp.fc` and `mlp.proj` over all experts."""

    layer: int
    routing_agreement: float
    output_error: float
    weight_error: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """tokens: predicted tokens that the figures are means over. mean_kl: of A relative to B, KL(A || B), in nats per
    token. top1_agreement: share of tokens for which both find the same one most likely. context: tokens of a window."""

    a: str
    b: str
    texts: int
    tokens: int
    context: int
    perplexity_a: float
    perplexity_b: float
    perplexity_change_percent: float
    mean_kl: float
    top1_agreement: float
    layers: list[LayerComparison]


def compare_models(
    a: ModelDirectory,
    b: ModelDirectory,
    texts: list[str],
    *,
    context: int = 2048,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """A's tokenizer reads the texts, cut into windows of `context` tokens without overlap. One layer of each model is
    in memory at a time. dtype: of the computation; device: None is the CPU. progress: called with the layers done and
    their total.

    Raises MixtralError when a directory cannot be loaded, the dimensions differ, or there is nothing to predict.
    """
    device = device or torch.device("cpu")
    source_a, source_b = a.layers(device, dtype), b.layers(device, dtype)
    _check_dimensions(source_a, source_b, a, b)
    context = min(context, source_a.config.max_position_embeddings, source_b.config.max_position_embeddings)
    windows = cut_into_windows(texts, a.tokenizer(), context)
    walk_a, walk_b = _Walk(source_a, windows), _Walk(source_b, windows)
    layers = []
    for index in range(source_a.config.num_hidden_layers):
        layers.append(_compare_layer(index, walk_a.step(), walk_b.step()))
        if progress is not None:
            progress(index + 1, source_a.config.num_hidden_layers)
    nll_a, nll_b, kl, agreements = (walk_a.compare_predictions(walk_b) / windows.predicted).tolist()
    return Comparison(
        a=str(a.directory),
        b=str(b.directory),
        texts=len(texts),
        tokens=windows.predicted,
        context=context,
        perplexity_a=math.exp(nll_a),
        perplexity_b=math.exp(nll_b),
        perplexity_change_percent=100 * math.expm1(nll_b - nll_a),
        mean_kl=kl,
        top1_agreement=agreements,
        layers=layers,
    )


def _check_dimensions(source_a: LayerSource, source_b: LayerSource, a: ModelDirectory, b: ModelDirectory) -> None:
    config_a, config_b = source_a.config, source_b.config
    pairs = {name: (getattr(config_a, name), getattr(config_b, name)) for name in SAME_DIMENSIONS}
    pairs["num_experts"] = (config_a.moe.num_experts, config_b.moe.num_experts)
    for name, (value_a, value_b) in pairs.items():
        if value_a != value_b:
            raise InvalidArgument(
                f"{b.directory} has {name} {value_b}, {a.directory} has {value_a}: they cannot be compared"
            )


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer of one model. chosen: [tokens, top_k], the experts of each token in ascending order."""

    layer: Layer
    states: HiddenStates
    chosen: Tensor


class _Walk:
    """One of the two models. Also a LayerSource, whose routers note down what they choose."""

    def __init__(self, source: LayerSource, windows: Windows) -> None:
        self.config, self.device, self.dtype = source.config, source.device, source.dtype
        self.embedding, self.head = source.embedding, source.head
        self._source = source
        self._windows = windows
        self._chosen: list[Tensor] = []
        self._layers = walk_layers(self, windows.samples)

    def layer(self, index: int) -> Layer:
        layer = self._source.layer(index)
        return replace(layer, router=_NotingRouter(layer.router, self._note))

    def _note(self, logits: Tensor) -> None:
        experts, _ = route(logits, self.config.moe.top_k)
        self._chosen.append(experts.sort(dim=-1).values.to(torch.int16).cpu())

    def step(self) -> _Step:
        self._chosen.clear()
        _, layer, self.states = next(self._layers)
        return _Step(layer, self.states, torch.cat(self._chosen))

    @torch.inference_mode()
    def compare_predictions(self, other: "_Walk") -> Tensor:
        """Summed over the tokens: negative log likelihood of both, KL divergence, agreements on the likeliest."""
        totals = torch.zeros(4, dtype=torch.float64)
        for (log_a, targets), (log_b, _) in zip(self._predictions(), other._predictions(), strict=True):
            index = torch.tensor(targets, device=log_a.device)[:, None]
            kl = (log_a.exp() * (log_a - log_b)).sum()
            agreements = (log_a.argmax(-1) == log_b.argmax(-1)).sum()
            nll_a, nll_b = (-log.gather(1, index).sum() for log in (log_a, log_b))
            totals += torch.stack([nll_a, nll_b, kl, agreements.double()]).cpu()
        return totals

    def _predictions(self) -> Iterator[tuple[Tensor, list[int]]]:
        return predictions(self._source, self.states, self._windows)


@dataclass(frozen=True, slots=True)
class _NotingRouter(LinearAround):
    note: Callable[[Tensor], None]

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.linear(x)
        self.note(logits)
        return logits


@torch.inference_mode()
def _compare_layer(index: int, a: _Step, b: _Step) -> LayerComparison:
    # A different routing width agrees on no token.
    same_width = a.chosen.shape == b.chosen.shape
    agreement = float((a.chosen == b.chosen).all(dim=-1).double().mean()) if same_width else 0.0
    samples = range(len(a.states.samples))
    return LayerComparison(
        layer=index,
        routing_agreement=agreement,
        output_error=_relative_error((a.states.sample(i), b.states.sample(i)) for i in samples),
        weight_error={
            name: _relative_error(
                (one.dequantize(torch.float32), other.dequantize(torch.float32))
                for one, other in zip(linears, _linears(b.layer)[name], strict=True)
            )
            for name, linears in _linears(a.layer).items()
        },
    )


def _linears(layer: Layer) -> dict[str, list[Linear]]:
    return {
        "attention.qkv": [layer.qkv],
        "attention.dense": [layer.dense],
        "mlp.router": [layer.router],
        "mlp.fc": layer.experts.fc,
        "mlp.proj": layer.experts.proj,
    }


def _relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """|B - A| / |A| over all pairs (A, B) together."""
    difference = norm = 0.0
    for a, b in pairs:
        difference += float((b - a).double().square().sum())
        norm += float(a.double().square().sum())
    return math.sqrt(difference / norm) if norm else 0.0
