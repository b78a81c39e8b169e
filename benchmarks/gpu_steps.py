"""One decode step of the model alone, without scheduler and sampling: how far the engine's steps are from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from gpu_kernels import attention_batch
from gpu_timing import time_calls

from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.model import MixtralModel


@dataclass(frozen=True, slots=True)
class StepFigures:
    batch: int
    context: int
    seconds: float
    graph: bool


@torch.inference_mode()
def measure_steps(model: MixtralModel, cases: Sequence[tuple[int, int]], for_s: float) -> Iterator[StepFigures]:
    """cases: (sequences, tokens of each, the new one among them). Every sequence has another token."""
    for batch, context in cases:
        cache = model.new_cache(batch * blocks_for(context))
        built = attention_batch(model.config, batch, context, 1, model.device)
        built.token_ids.copy_(torch.arange(batch) * 31 % model.config.vocab_size)

        def step(built: object = built, cache: object = cache) -> torch.Tensor:
            return model.logits(model.forward(built, cache)).argmax(-1)  # type: ignore[arg-type]

        timing = time_calls([step], model.device, for_s)
        yield StepFigures(batch, context, timing.seconds, timing.graph)
        del cache
