"""What the machine's memory allows: reads the bytes of weights that a step needs, with all threads, and computes
nothing. No engine that reads its weights from memory can be faster on them.

The bytes are those of our int8 engine, where they lie in its mapped file. Each token takes experts at random, anew for
every step.
"""

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from peers.interface import Prompt, Settings, Trace
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.tensor_names import checkpoint_format, weight_specs, weights


class MemoryReader:
    """`settings.weights` is an engine directory."""

    def __init__(self, settings: Settings) -> None:
        assert settings.weights is not None
        torch.set_num_threads(settings.threads)
        checkpoint = Checkpoint.open(settings.weights)
        config = checkpoint.config
        self._experts, self._top_k = config.moe.num_experts, config.moe.top_k
        self._always: list[Tensor] = []  # read by every step
        self._layers: list[list[list[Tensor]]] = []  # of each layer and expert what is read of it
        for weight in weights(config):
            if weight.name == "transformer.vocab_embedding.weight":
                continue
            tensors = [checkpoint.tensor(spec.name) for spec in weight_specs(weight, checkpoint_format(config))]
            if not weight.stacked:
                self._always += map(_words, tensors)
                continue
            if weight.name.endswith("mlp.fc.weight"):
                self._layers.append([[] for _ in range(self._experts)])
            for expert, parts in enumerate(self._layers[-1]):
                parts += [_words(tensor[expert]) for tensor in tensors if len(tensor) == self._experts]
        self._random = random.Random(0)
        self._threads = settings.threads

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {"torch": torch.__version__},
            "weights": "int8, only read",
            "threads": self._threads,
        }

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        """The first step reads what a prompt needs; tokens are zeros."""
        trace = Trace.start(time.perf_counter(), len(prompts))
        for step in range(output_tokens):
            self._read(len(prompts) * (1 if step else len(prompts[0])))
            now = time.perf_counter()
            for sequence in range(len(prompts)):
                trace.add(sequence, [0], now)
        return trace

    def _read(self, tokens: int) -> None:
        for words in self._always:
            words.max()
        for layer in self._layers:
            chosen: set[int] = set()
            for _ in range(tokens):
                chosen.update(self._random.sample(range(self._experts), self._top_k))
                if len(chosen) == self._experts:
                    break
            for expert in chosen:
                for words in layer[expert]:
                    words.max()

    def close(self) -> None: ...


def _words(tensor: Tensor) -> Tensor:
    """The same bytes as 32-bit integers, whose largest one PyTorch finds as fast as it can read."""
    flat = tensor.reshape(-1).view(torch.uint8)
    return flat[: len(flat) // 4 * 4].view(torch.int32)


def open_peer(settings: Settings) -> MemoryReader:
    return MemoryReader(settings)
