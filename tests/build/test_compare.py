"""`mixtral-build compare`: the figures against transformers, texts as they are read, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, MixtralForCausalLM, PreTrainedTokenizerFast

from mixtral_build.compare import compare_checkpoints, read_texts
from mixtral_build.quantize import quantize_model
from mixtral_runtime.errors import CheckpointError, InvalidArgument

TEXTS = ["a b c d e f g", "<s> c a b", "b " * 300, "a"]


@pytest.fixture
def model_with_tokenizer(model_dir: Path) -> Path:
    """96 one-letter words; BOS is added in front, as Mixtral's tokenizer does."""
    vocabulary = {"<s>": 0} | {chr(ord("!") + i): i for i in range(1, 96)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(model_dir)
    return model_dir


def quantize(model_dir: Path, precision: str) -> Path:
    target = model_dir.parent / precision
    quantize_model(model_dir, target, precision)
    return target


def reference_windows(model_dir: Path) -> list[list[int]]:
    """BOS once, at most 128 tokens (the model's limit) at a time, nothing for a text without a token to predict."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    windows = []
    for text in TEXTS:
        ids = tokenizer(text.removeprefix("<s>"))["input_ids"]
        windows += [ids[start : start + 128] for start in range(0, len(ids), 128)]
    return windows


def test_the_figures_are_those_that_transformers_gives(model_with_tokenizer: Path) -> None:
    dense, int8 = quantize(model_with_tokenizer, "16bit"), quantize(model_with_tokenizer, "int8")
    found = compare_checkpoints(dense, int8, TEXTS)

    reference = MixtralForCausalLM.from_pretrained(model_with_tokenizer, dtype=torch.float32).eval()
    nll, tokens = 0.0, 0
    for ids in reference_windows(model_with_tokenizer):
        with torch.no_grad():
            log_probs = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nll -= float(log_probs.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        tokens += len(ids) - 1
    assert (found.texts, found.tokens) == (4, tokens)
    assert found.perplexity_a == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert 0 < found.mean_kl < 1
    assert 0.5 < found.top1_agreement <= 1


def test_progress_ends_with_the_last_window(model_with_tokenizer: Path) -> None:
    dense = quantize(model_with_tokenizer, "16bit")
    seen: list[tuple[int, int]] = []
    compare_checkpoints(dense, dense, TEXTS * 8, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (48, 48)
    assert len(seen) > 1


def test_a_text_without_a_token_to_predict_is_refused(model_with_tokenizer: Path) -> None:
    dense = quantize(model_with_tokenizer, "16bit")
    with pytest.raises(InvalidArgument, match="at least two"):
        compare_checkpoints(dense, dense, [""])


def test_a_directory_without_a_usable_tokenizer_is_refused(model_dir: Path) -> None:
    dense = quantize(model_dir, "16bit")
    with pytest.raises(CheckpointError, match="tokenizer"):
        compare_checkpoints(dense, dense, ["a b"])


def test_models_of_different_vocabularies_are_refused(model_with_tokenizer: Path) -> None:
    dense = quantize(model_with_tokenizer, "16bit")
    demo = Path(__file__).parents[2] / "models" / "tiny-mixtral"
    other = model_with_tokenizer.parent / "demo"
    quantize_model(demo, other, "int8")
    with pytest.raises(InvalidArgument, match=r"has a vocabulary of \d+, .* has 96"):
        compare_checkpoints(dense, other, ["a b"])


def test_json_lines_are_several_texts_and_other_files_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "kind": "x"}\n{"text": "two\\nlines\u2028and more"}\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read_texts(tmp_path / "a.jsonl") == ["one", "two\nlines\u2028and more"]
    assert read_texts(tmp_path / "a.txt") == ["one\ntwo\n"]


@pytest.mark.parametrize("line", ['{"prompt": "x"}', "text", "[1]"])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(InvalidArgument, match=r'a\.jsonl line 2 is not a JSON object with a "text"'):
        read_texts(tmp_path / "a.jsonl")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        read_texts(tmp_path / "a.txt")
