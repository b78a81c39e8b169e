"""Perplexity against the loss of transformers, and the windows that texts are cut into."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM

from mixtral_build.cli import run
from mixtral_build.engine import build_pytorch_engine
from mixtral_build.evaluate import evaluate_perplexity
from mixtral_build.layer_source import HfLayerSource
from mixtral_build.limits import LimitOverrides
from mixtral_build.quality_store import store_quality
from mixtral_build.quantize import quantize_model
from mixtral_build.windows import cut_into_windows
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tokenizer import load_tokenizer

TEXT = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
LETTERS = [0, *(ord(letter) - ord("!") for letter in TEXT.split())]  # BOS and the ids of the words


def reference_perplexity(model_dir: Path, windows: list[list[int]], labels: list[list[int]]) -> float:
    """From transformers' own loss, with labels of -100 where nothing is predicted."""
    model = MixtralForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for ids, wanted in zip(windows, labels, strict=True):
        predicted = sum(label != -100 for label in wanted[1:])
        with torch.no_grad():
            total += float(model(torch.tensor([ids]), labels=torch.tensor([wanted])).loss) * predicted
        count += predicted
    return math.exp(total / count)


@pytest.mark.parametrize(("context", "stride"), [(128, None), (8, None), (8, 8), (8, 3)])
def test_perplexity_is_that_of_transformers(model_with_tokenizer: Path, context: int, stride: int | None) -> None:
    tokenizer = load_tokenizer(model_with_tokenizer)
    found = evaluate_perplexity(
        HfLayerSource(model_with_tokenizer), tokenizer, [TEXT, "z a"], context=context, stride=stride
    )
    windows, labels = [], []
    for ids in (LETTERS, [0, LETTERS[26], LETTERS[1]]):
        end = 0
        for start in range(0, len(ids), stride or context):
            windows.append(ids[start : start + context])
            labels.append([-100 if start + i < end else token for i, token in enumerate(windows[-1])])
            end = start + len(windows[-1])
            if end == len(ids):
                break
    assert found.perplexity == pytest.approx(reference_perplexity(model_with_tokenizer, windows, labels), rel=1e-4)
    assert found.tokens == sum(label != -100 for wanted in labels for label in wanted[1:])
    assert (found.texts, found.context, found.stride) == (2, context, stride or context)


def test_a_context_beyond_the_models_is_cut_to_it(model_with_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(model_with_tokenizer)
    found = evaluate_perplexity(HfLayerSource(model_with_tokenizer), tokenizer, ["b " * 300], context=4096)
    assert (found.context, found.tokens) == (128, 298)  # 301 tokens in three windows


@pytest.mark.parametrize(("length", "context", "stride"), [(1, 4, 2), (2, 4, 2), (9, 4, 1), (9, 4, 3), (10, 4, 4)])
def test_no_token_is_predicted_twice_and_with_overlap_none_is_left_out(
    model_with_tokenizer: Path, length: int, context: int, stride: int
) -> None:
    text = " ".join("a" * length)
    windows = cut_into_windows([text], load_tokenizer(model_with_tokenizer), context, stride)
    assert max(map(len, windows.token_ids)) <= context
    unpredicted = len(windows.token_ids) if stride == context else 1  # of length + 1 tokens, BOS among them
    assert windows.predicted == length + 1 - unpredicted


def test_impossible_windows_are_refused(model_with_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(model_with_tokenizer)
    with pytest.raises(InvalidArgument, match="the stride is 9, it must be at most the context, which is 8"):
        cut_into_windows(["a b"], tokenizer, 8, 9)
    with pytest.raises(InvalidArgument, match="at least two"):
        cut_into_windows([""], tokenizer, 8)


@pytest.fixture
def engine_dir(model_with_tokenizer: Path) -> Path:
    folder = model_with_tokenizer.parent
    quantize_model(model_with_tokenizer, folder / "checkpoint", "int8")
    build_pytorch_engine(folder / "checkpoint", folder / "engine", device=find_device("cpu"), limits=LimitOverrides())
    return folder / "engine"


def test_the_command_stores_figures_in_an_engines_manifest(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "q", "choices": ["x", "y"], "answer": 1}\n')
    store_quality(engine_dir, {"note": 1, "perplexity": "old"})
    before = Manifest.load(engine_dir)
    arguments = ["--text", str(tmp_path / "text.txt"), "--multiple-choice", str(questions), "--store", "--json"]
    assert run(["evaluate", str(engine_dir), *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    manifest = Manifest.load(engine_dir)
    assert manifest.quality == {
        "note": 1,
        "perplexity": printed["perplexity"],
        "multiple_choice": printed["multiple_choice"],
    }
    assert printed["perplexity"]["file"] == "text.txt"
    assert printed["multiple_choice"]["questions"] == 1
    assert (manifest.files, manifest.limits) == (before.files, before.limits)
    manifest.check_files(engine_dir, sha256=True)
    assert not list(engine_dir.glob(".quality-*"))


def test_only_an_engine_stores_figures(
    model_with_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    assert run(["evaluate", str(model_with_tokenizer), "--text", str(tmp_path / "text.txt"), "--store"]) == 1
    assert "is a model, only an engine has a manifest to store figures in" in capsys.readouterr().err


def test_model_checkpoint_and_engine_are_all_measured(
    model_with_tokenizer: Path, engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    found = []
    for directory in (model_with_tokenizer, engine_dir.parent / "checkpoint", engine_dir):
        assert run(["evaluate", str(directory), "--text", str(tmp_path / "text.txt"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"]["perplexity"])
    model, checkpoint, engine = found
    assert checkpoint == engine
    assert checkpoint == pytest.approx(model, rel=0.05)


def test_nothing_to_measure_is_wrong_usage(model_with_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(model_with_tokenizer)]) == 2
    assert "--text, --multiple-choice or both" in capsys.readouterr().err
