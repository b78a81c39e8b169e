"""A small random Mixtral as transformers saves it."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, in several shards with an index; do not change it."""
    directory = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        rope_theta=1e6,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="200KB")
    (directory / "tokenizer.json").write_text("{}")  # copied, never read here
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


@pytest.fixture
def model_dir(saved_model: Path, tmp_path: Path) -> Path:
    """A copy of `saved_model` that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))
