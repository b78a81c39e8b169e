"""The model's steps alone, without the engine's scheduler, threads and sampler: what is left is the model itself."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from peers.engine_peer import describe_engine
from peers.interface import Prompt, Settings, Trace

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.model import MixtralModel


class BareSteps:
    """`settings.weights` is an engine directory. Prompts go in pieces of the engine's tokens per step."""

    def __init__(self, settings: Settings) -> None:
        assert settings.weights is not None
        torch.set_num_threads(settings.threads)
        manifest = Manifest.load(settings.weights)
        self._precision, self._chunk = manifest.precision, manifest.limits.max_num_tokens
        self._model = MixtralModel.load(Checkpoint.open(settings.weights), "cpu")
        per_sequence = blocks_for(settings.max_tokens)
        self._blocks = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(settings.max_sequences)]
        self._cache = self._model.new_cache(per_sequence * settings.max_sequences)
        self._threads = settings.threads

    def describe(self) -> dict[str, Any]:
        return describe_engine(self._precision, self._threads)

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        trace = Trace.start(time.perf_counter(), len(prompts))
        position, tokens = 0, [list(prompt) for prompt in prompts]
        for _ in range(output_tokens):
            length = len(tokens[0])
            chosen = self._feed(tokens, position)
            now = time.perf_counter()
            for sequence, token in enumerate(chosen):
                trace.add(sequence, [token], now)
            position, tokens = position + length, [[token] for token in chosen]
        return trace

    @torch.inference_mode()
    def _feed(self, tokens: list[list[int]], position: int) -> list[int]:
        """The likeliest next token of each sequence, after its tokens from `position` on."""
        size = max(1, self._chunk // len(tokens))
        for start in range(0, len(tokens[0]), size):
            builder = BatchBuilder()
            for ids, blocks in zip(tokens, self._blocks, strict=False):
                builder.add(ids[start : start + size], position + start, blocks)
            batch = builder.build(self._model.device)
            hidden = self._model.forward(batch, self._cache)
        chosen: list[int] = self._model.logits(hidden[batch.last_rows]).argmax(-1).tolist()
        return chosen

    def close(self) -> None: ...


def open_peer(settings: Settings) -> BareSteps:
    return BareSteps(settings)
