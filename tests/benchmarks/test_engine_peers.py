"""The peers of the engine's benchmark compute what they say: bare steps give the engine's tokens, and the reader of
memory reads the bytes that are counted."""

from pathlib import Path

import pytest
import torch
from peers.engine_peer import OurEngine
from peers.interface import Settings
from peers.memory_peer import MemoryReader
from peers.steps_peer import BareSteps
from step_bytes import step_bytes

from mixtral_build.cli import run
from mixtral_runtime.checkpoint import read_config
from mixtral_runtime.config import CheckpointConfig

PROMPTS = [[1, 400, 500, 600, 700], [1, 901, 902, 903, 904], [1, 77, 78, 79, 80]]
STEPS = 6


@pytest.fixture(scope="module")
def settings(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("peers")
    checkpoint, engine = folder / "checkpoint", folder / "engine"
    for words in (("quantize", demo_model, checkpoint), ("engine", checkpoint, engine, "--runtime", "pytorch")):
        assert run([str(word) for word in words]) == 0
    return Settings(demo_model, torch.get_num_threads(), len(PROMPTS), 64, folder, engine)


def test_bare_steps_give_the_engine_s_tokens(settings: Settings) -> None:
    engine = OurEngine(settings)
    expected = engine.generate(PROMPTS, STEPS).tokens
    engine.close()
    assert [len(tokens) for tokens in expected] == [STEPS] * len(PROMPTS)
    assert BareSteps(settings).generate(PROMPTS, STEPS).tokens == expected


def test_the_reader_reads_what_a_step_needs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many tokens every expert is read; with one, two of eight."""
    read: list[int] = []
    largest = torch.Tensor.max

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        read.append(tensor.nbytes)
        return largest(tensor)

    monkeypatch.setattr(torch.Tensor, "max", watched)
    config = CheckpointConfig.from_hf(read_config(settings.model))
    for tokens in (1, 1000):
        read.clear()
        MemoryReader(settings).generate([[0] * tokens], 1)
        assert sum(read) == pytest.approx(step_bytes(config, "int8", tokens), rel=1e-3)
