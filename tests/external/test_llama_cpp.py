"""llama.cpp reads the GGUF file that we write and computes the same model."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from peers.interface import Settings
from peers.peer_process import PeerProcess
from peers.run import JUDGE, Prompts

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="no llama-cpp-python here; `make bench-peers` builds it"
)
PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 8, 64, 32


@pytest.fixture
def peers(demo_model: Path, tmp_path: Path) -> Iterator[dict[str, PeerProcess]]:
    with ExitStack() as stack:
        opened = {}
        for name in ("llama.cpp", JUDGE):
            settings = Settings(demo_model, 1, PROMPTS, PROMPT_TOKENS + OUTPUT_TOKENS, tmp_path / name)
            opened[name] = PeerProcess(name, settings)
            stack.callback(opened[name].close)
        yield opened


def test_it_generates_what_transformers_would(peers: dict[str, PeerProcess], demo_model: Path) -> None:
    """Q8_0 may decide a near tie otherwise, after which the texts part; so each token is judged after the same ones."""
    prompts = Prompts(demo_model, demo_model / "heldout.jsonl", PROMPT_TOKENS, seed=3).take(PROMPTS)
    generated = peers["llama.cpp"].generate(prompts, OUTPUT_TOKENS).tokens
    regrets = peers[JUDGE].regrets(prompts, generated)
    assert sum(regrets) / len(regrets) < 0.01
    assert sum(regret == 0 for regret in regrets) > 0.95 * len(regrets)
    theirs = peers[JUDGE].generate(prompts, OUTPUT_TOKENS).tokens
    assert sum(ours == other for ours, other in zip(generated, theirs, strict=True)) >= PROMPTS // 2


def test_a_second_batch_owes_nothing_to_the_first(peers: dict[str, PeerProcess], demo_model: Path) -> None:
    prompts = Prompts(demo_model, demo_model / "heldout.jsonl", PROMPT_TOKENS, seed=4).take(2)
    first = peers["llama.cpp"].generate(prompts[:1], OUTPUT_TOKENS).tokens
    peers["llama.cpp"].generate(prompts[1:], OUTPUT_TOKENS)
    assert peers["llama.cpp"].generate(prompts[:1], OUTPUT_TOKENS).tokens == first
