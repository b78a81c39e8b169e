"""Fixtures that several packages' tests share."""

import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # GPU kernels are tested so; read when Triton is first imported

import mistral_common
import pytest
from mixtral_tokenizer import write_mixtral_tokenizer

from mixtral_runtime.config import CheckpointConfig

# Tests measure behaviour, not speed, and on a busy machine PyTorch's threads wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A runner that starts the tests in the background hands down an ignored SIGINT, which the programs they start would
# inherit; then no test could interrupt one.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The Hugging Face demo model that ships with the project."""
    return ROOT / "models" / "tiny-mixtral"


@pytest.fixture(scope="session")
def mixtral_8x7b_json() -> dict[str, Any]:
    """What the published Mixtral-8x7B-v0.1's config.json says."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


@pytest.fixture(scope="session")
def mixtral_8x7b(mixtral_8x7b_json: dict[str, Any]) -> CheckpointConfig:
    """Its dimensions, not quantised."""
    return CheckpointConfig.from_hf(mixtral_8x7b_json, "float16")


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
