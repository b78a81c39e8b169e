"""Running a model layer by layer: one layer's weights in memory at a time, the hidden states of all samples carried
along. So calibration, scale search and evaluation of a model far larger than the memory work on one machine."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_build.layer_source import LayerSource
from mixtral_build.linear_around import LinearAround
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import Linear
from mixtral_runtime.formats.fp8 import to_e4m3
from mixtral_runtime.pytorch.experts import Experts, route
from mixtral_runtime.pytorch.model import Layer
from mixtral_runtime.pytorch.rotary import Rotary

CHUNK_TOKENS = 4096  # that run through a layer together: enough rows for each expert to be bound by arithmetic
LOGITS_TOKENS = 512  # 64 MiB of float32 logits with a vocabulary of 32,000
SPILL_BYTES = 2 << 30  # larger hidden states lie in a file


class Observer(Protocol):
    def __call__(self, layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        """Sees what goes into a part of a layer, for one chunk of samples.

        name: "attention.qkv", "attention.dense" and "mlp.router" with x [tokens of the chunk, in], in the samples'
        order; "attention.keys" (rotated) and "attention.values" with what goes into the KV cache, [tokens, kv_heads *
        head_size]; "mlp.fc" and "mlp.proj" with x [tokens routed to this expert, in] for each expert that got any.
        x must not be changed or kept.
        """
        ...


class _Show(Protocol):
    """An observer of one layer."""

    def __call__(self, name: str, x: Tensor, expert: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Samples:
    """token_ids: of each sample, which is attended to as a whole. Raises InvalidArgument for an empty sample."""

    token_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.token_ids or not all(self.token_ids):
            raise InvalidArgument(f"there are {len(self.token_ids)} samples, each needs at least one token")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))


class HiddenStates:
    """The hidden states of all samples, one after the other, [tokens, hidden] in `dtype` on the CPU.

    Above spill_bytes they lie in a mapped file in the folder for temporary files (TMPDIR), which vanishes with the
    object: the operating system then keeps in memory what there is room for.
    """

    def __init__(self, samples: Samples, hidden_size: int, dtype: torch.dtype, spill_bytes: int = SPILL_BYTES) -> None:
        self.samples = samples
        self._starts = [0, *accumulate(map(len, samples.token_ids))]
        shape = (samples.tokens, hidden_size)
        size = samples.tokens * hidden_size
        self.spilled = size * dtype.itemsize > spill_bytes
        if self.spilled:
            with tempfile.NamedTemporaryFile(prefix="hidden-states-") as file:
                # Reserved now: a disk that is full when a mapped page is written kills the process without a word.
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
                self._values = torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)
        else:
            self._values = torch.empty(shape, dtype=dtype)

    def sample(self, index: int) -> Tensor:
        """[tokens of the sample, hidden]; writing to it changes the states."""
        return self.chunk(range(index, index + 1))

    def chunk(self, indices: range) -> Tensor:
        """[tokens of these consecutive samples, hidden]; writing to it changes the states."""
        return self._values[self._starts[indices.start] : self._starts[indices.stop]]

    def chunks(self, tokens: int = CHUNK_TOKENS) -> Iterator[range]:
        """Consecutive samples that together have at most so many tokens, unless one alone has more."""
        first = 0
        for index in range(len(self.samples)):
            if index > first and self._starts[index + 1] - self._starts[first] > tokens:
                yield range(first, index)
                first = index
        yield range(first, len(self.samples))


def run_layers(
    source: LayerSource,
    samples: Samples,
    *,
    observe: Observer | None = None,
    on_layer: Callable[[int, Layer, HiddenStates], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
    spill_bytes: int = SPILL_BYTES,
) -> HiddenStates:
    """The hidden states after the last layer, before the final norm. See `walk_layers`; on_layer: called with what it
    yields. progress: called with the layers done and their total."""
    states = None
    for index, layer, states in walk_layers(source, samples, observe=observe, spill_bytes=spill_bytes):
        if on_layer is not None:
            on_layer(index, layer, states)
        if progress is not None:
            progress(index + 1, source.config.num_hidden_layers)
        del layer  # before the next one is loaded
    assert states is not None
    return states


@torch.inference_mode()
def walk_layers(
    source: LayerSource, samples: Samples, *, observe: Observer | None = None, spill_bytes: int = SPILL_BYTES
) -> Iterator[tuple[int, Layer, HiddenStates]]:
    """Yields (index, layer, states after it) for each layer; the states are the same object every time.

    Several models can be walked in lockstep. Peak memory is that of one layer and one chunk of activations, and the
    states when they are not spilled; the caller must drop each layer before it takes the next.
    Raises InvalidArgument when a sample is longer than the model's positions or has a token outside the vocabulary.
    """
    config = source.config
    _check(samples, config)
    states = HiddenStates(samples, config.hidden_size, source.dtype, spill_bytes)
    _embed(source, states)
    longest = max(map(len, samples.token_ids))
    rotary = Rotary(config.head_size, config.rotary_base, longest, source.device)
    for index in range(config.num_hidden_layers):
        layer = source.layer(index)
        show = None if observe is None else partial(observe, index)
        observed = layer if show is None else _observed(layer, show)
        for chunk in states.chunks():
            x = states.chunk(chunk)
            lengths = [len(samples.token_ids[i]) for i in chunk]
            x.copy_(_run_layer(observed, config, x.to(source.device), lengths, rotary, show))
        del observed
        yield index, layer, states
        del layer


@torch.inference_mode()
def logits_chunks(source: LayerSource, states: HiddenStates) -> Iterator[tuple[int, int, Tensor]]:
    """From the states after the last layer: (sample, position of the first row, logits [tokens, vocab] float32)."""
    norm, lm_head = source.head()
    for index in range(len(states.samples)):
        start = 0
        for rows in torch.split(states.sample(index), LOGITS_TOKENS):
            logits = lm_head(_rms_norm(rows.to(source.device), norm, source.config))
            yield index, start, logits[:, : source.config.vocab_size].float()  # without a padded vocabulary's zeros
            start += len(rows)


def _check(samples: Samples, config: CheckpointConfig) -> None:
    for token_ids in samples.token_ids:
        if len(token_ids) > config.max_position_embeddings:
            raise InvalidArgument(
                f"a sample has {len(token_ids)} tokens, the model's limit is {config.max_position_embeddings}"
            )
        if not 0 <= min(token_ids) <= max(token_ids) < config.vocab_size:
            raise InvalidArgument(
                f"a sample has token {max(token_ids)}, the model's vocabulary has {config.vocab_size}"
            )


def _embed(source: LayerSource, states: HiddenStates) -> None:
    embedding = source.embedding()
    for chunk in states.chunks():
        ids = [token for i in chunk for token in states.samples.token_ids[i]]
        states.chunk(chunk).copy_(F.embedding(torch.tensor(ids, device=embedding.device), embedding))


def _run_layer(
    layer: Layer, config: CheckpointConfig, x: Tensor, lengths: list[int], rotary: Rotary, show: _Show | None
) -> Tensor:
    """x: [tokens, hidden] of whole samples with these lengths, one after the other."""
    x = x + _attend(layer, config, _rms_norm(x, layer.input_layernorm, config), lengths, rotary, show)
    normed = _rms_norm(x, layer.post_layernorm, config)
    experts, weights = route(layer.router(normed.float()), config.moe.top_k)
    return x + layer.experts(normed, experts, weights)


def _attend(
    layer: Layer, config: CheckpointConfig, x: Tensor, lengths: list[int], rotary: Rotary, show: _Show | None
) -> Tensor:
    qkv = layer.qkv(x).view(len(x), -1, config.head_size)  # [tokens, heads + 2 * kv_heads, head_size]
    positions = torch.cat([torch.arange(length, device=x.device) for length in lengths])
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    queries, keys, values = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
    queries, keys = rotary(queries, positions), rotary(keys, positions)
    if show is not None:
        show("attention.keys", keys.flatten(1))
        show("attention.values", values.flatten(1))
    if layer.kv_scale is not None:  # what comes back from an FP8 cache
        keys, values = (
            (to_e4m3(part, layer.kv_scale).float() * layer.kv_scale).to(part.dtype) for part in (keys, values)
        )
    attended = torch.empty_like(queries)  # [tokens, heads, head_size]
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        q, k, v = (part[rows].transpose(0, 1)[None] for part in (queries, keys, values))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attended[rows] = out[0].transpose(0, 1)
        start += length
    return layer.dense(attended.flatten(1))


def _rms_norm(x: Tensor, weight: Tensor, config: CheckpointConfig) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, config.norm_epsilon).to(x.dtype)


@dataclass(frozen=True, slots=True)
class _ObservedLinear(LinearAround):
    """Shows its input to the observer, then multiplies."""

    show: Callable[[Tensor], None]

    def __call__(self, x: Tensor) -> Tensor:
        self.show(x)
        return self.linear(x)


def _observed(layer: Layer, show: _Show) -> Layer:
    def wrap(linear: Linear, name: str, expert: int | None = None) -> Linear:
        return _ObservedLinear(linear, lambda x: show(name, x, expert))

    return replace(
        layer,
        qkv=wrap(layer.qkv, "attention.qkv"),
        dense=wrap(layer.dense, "attention.dense"),
        router=wrap(layer.router, "mlp.router"),
        experts=Experts(
            [wrap(linear, "mlp.fc", expert) for expert, linear in enumerate(layer.experts.fc)],
            [wrap(linear, "mlp.proj", expert) for expert, linear in enumerate(layer.experts.proj)],
        ),
    )
