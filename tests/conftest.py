"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import mistral_common
import pytest
from mixtral_tokenizer import write_mixtral_tokenizer

# Tests measure behaviour, not speed, and on a busy machine PyTorch's threads wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The Hugging Face demo model that ships with the project."""
    return ROOT / "models" / "tiny-mixtral"


@pytest.fixture(scope="session")
def mixtral_sentencepiece() -> Path:
    """Mixtral's published SentencePiece model, as mistral-common ships it."""
    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def mixtral_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, mixtral_sentencepiece: Path) -> Path:
    """A Hugging Face tokenizer folder around the real Mixtral vocabulary."""
    folder = tmp_path_factory.mktemp("mixtral-tokenizer")
    write_mixtral_tokenizer(mixtral_sentencepiece, folder)
    return folder
