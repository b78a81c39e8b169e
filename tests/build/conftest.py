"""Small random Mixtrals as transformers saves them."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On models this small, threads wait for each other longer than they compute."""
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def grouped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for groups of 128 on each of two GPUs, with a tokenizer of a word per token; do not change it."""
    directory = tmp_path_factory.mktemp("grouped")
    torch.manual_seed(1)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        rope_theta=1e6,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="2MB")
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(96)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    return directory


@pytest.fixture
def model_dir(saved_model: Path, tmp_path: Path) -> Path:
    """A copy of `saved_model` that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


@pytest.fixture
def model_with_tokenizer(model_dir: Path) -> Path:
    """With 95 one-letter words, "!" being any other word, and BOS."""
    vocabulary = {"<s>": 0} | {chr(ord("!") + i): i for i in range(1, 95)} | {"!": 95}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(model_dir)
    return model_dir
