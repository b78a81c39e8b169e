"""Fixtures that several packages' tests share."""

import json
import os
import shutil
from pathlib import Path

import mistral_common
import pytest

# Tests measure behaviour, not speed, and on a busy machine PyTorch's threads wait for each other more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent

# Behaves as the template published with Mixtral-8x7B-Instruct-v0.1.
MIXTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


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
    shutil.copy(mixtral_sentencepiece, folder / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": MIXTRAL_CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
