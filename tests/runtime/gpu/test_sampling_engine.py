"""An engine gives the same tokens with the sampler of a GPU as with a CPU's, also when steps are launched ahead."""

import time

import pytest

from mixtral_runtime.engine import EngineLimits, Request, SamplingParams
from mixtral_runtime.pytorch import engine as engine_module
from mixtral_runtime.pytorch.engine import PyTorchEngine
from mixtral_runtime.pytorch.gpu_sampler import GpuSampler
from mixtral_runtime.pytorch.model import MixtralModel

LIMITS = EngineLimits(max_batch_size=3, max_input_len=64, max_seq_len=128, max_num_tokens=64)
PENALISED = SamplingParams(0.9, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.3, seed=7)
REQUESTS = [
    Request([1, 2, 3], 6, streaming=False),
    Request([4, 5], 8, PENALISED, bad_sequences=[[3, 4], [7]], streaming=False),
    Request([9], 5, SamplingParams(1.5, top_k=20, seed=1), end_id=3, min_tokens=2, streaming=False),
    Request([9, 9, 8], 6, SamplingParams(presence_penalty=0.5), streaming=False),  # waits until another is done
]


def answers(model: MixtralModel, *, launch_ahead: bool) -> list[list[int]]:
    engine = PyTorchEngine(model, LIMITS, 4096, launch_ahead=launch_ahead)
    try:
        ids = [engine.submit(request) for request in REQUESTS]
        found: dict[int, list[int]] = {}
        deadline = time.monotonic() + 120
        while len(found) < len(ids) and time.monotonic() < deadline:
            for output in engine.poll(1.0):
                assert output.error is None
                found[output.id] = output.token_ids
        return [found[number] for number in ids]
    finally:
        engine.close()


def test_both_samplers_give_the_same_answers(model: MixtralModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(model, launch_ahead=False)
    monkeypatch.setattr(engine_module, "new_sampler", GpuSampler)
    assert answers(model, launch_ahead=False) == expected
    assert answers(model, launch_ahead=True) == expected
