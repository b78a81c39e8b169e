"""A whole small model whose attention alone runs on the GPU's kernels gives what it gives without them."""

from collections.abc import Callable

import pytest
import torch

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.kernels.gpu.attention import GpuAttention
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch import attention
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.model import MixtralModel

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8, 8, 61, 4, 120, 99, 3, 50, 51, 52, 53, 12]


@torch.inference_mode()
def test_a_model_gives_what_it_gives_without_the_kernels(
    make_checkpoint: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint("16bit", num_hidden_layers=2)
    plain = MixtralModel.load(checkpoint, "cpu", torch.float16)
    monkeypatch.setattr(attention, "gpu_kernels_serve", lambda device: True)
    model = MixtralModel.load(checkpoint, "cpu", torch.float16)
    assert isinstance(model._attention, GpuAttention)
    blocks = list(range(blocks_for(len(PROMPT))))
    cache = model.new_cache(len(blocks))
    logits = []
    for start, end in [(0, 9), (9, 17), (17, 18), (18, 19), (19, 20)]:  # chunks, then token by token
        builder = BatchBuilder()
        builder.add(PROMPT[start:end], start, blocks)
        logits.append(model.logits(model.forward(builder.build(model.device), cache)))
    found = torch.cat(logits).log_softmax(-1)
    expected = plain.forward_logits(PROMPT).log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1)  # Kullback-Leibler, per token
    assert divergence.abs().max() < 1e-3
