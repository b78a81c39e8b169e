"""`mixtral-build compare`: figures against transformers, faults in the layer where they are, and what is refused."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MixtralForCausalLM

from mixtral_build.cli import run
from mixtral_build.compare import Comparison, compare_models
from mixtral_build.compare_report import table
from mixtral_build.engine import build_pytorch_engine
from mixtral_build.limits import LimitOverrides
from mixtral_build.model_directory import ModelDirectory
from mixtral_build.quantize import quantize_model
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.manifest import Manifest

TEXTS = ["a b c d e f g", "<s> c a b", "b " * 300, "a"]
KINDS = ["attention.qkv", "attention.dense", "mlp.router", "mlp.fc", "mlp.proj"]


def quantize(model_dir: Path, precision: str) -> Path:
    target = model_dir.parent / precision
    quantize_model(model_dir, target, precision)
    return target


def compare(a: Path, b: Path, texts: list[str] = TEXTS) -> Comparison:
    return compare_models(ModelDirectory.open(a), ModelDirectory.open(b), texts)


def reference_windows(model_dir: Path) -> list[list[int]]:
    """BOS once, at most 128 tokens (the model's limit) at a time, nothing for a text without a token to predict."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    windows = []
    for text in TEXTS:
        ids = [0, *tokenizer(text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]]
        windows += [ids[start : start + 128] for start in range(0, len(ids), 128)]
    return windows


def test_the_figures_are_those_that_transformers_gives(model_with_tokenizer: Path) -> None:
    """The int8 model's weights are put into transformers too."""
    int8 = quantize(model_with_tokenizer, "int8")
    found = compare(model_with_tokenizer, int8)

    reference = MixtralForCausalLM.from_pretrained(model_with_tokenizer, dtype=torch.float32).eval()
    nll, tokens = 0.0, 0
    for ids in reference_windows(model_with_tokenizer):
        with torch.no_grad():
            log_probs = reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nll -= float(log_probs.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        tokens += len(ids) - 1
    assert (found.texts, found.tokens, found.context) == (4, tokens, 128)
    assert found.perplexity_a == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    change = 100 * (found.perplexity_b / found.perplexity_a - 1)
    assert found.perplexity_change_percent == pytest.approx(change)
    assert 0 < found.mean_kl < 1
    assert 0.5 < found.top1_agreement <= 1
    for layer in found.layers:
        assert 0.5 < layer.routing_agreement <= 1
        assert 0 < layer.output_error < 0.2
        assert list(layer.weight_error) == KINDS
        assert layer.weight_error["mlp.router"] == 0


def test_the_routing_and_output_of_a_layer_are_those_of_transformers(model_with_tokenizer: Path) -> None:
    """With a router whose rows are exchanged in layer 1; layer 0 and all other weights are equal."""
    changed = Path(shutil.copytree(model_with_tokenizer, model_with_tokenizer.parent / "changed"))
    name = "model.layers.1.block_sparse_moe.gate.weight"
    shard = json.loads((changed / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(changed / shard)
    tensors[name] = tensors[name].flip(0)
    save_file(tensors, changed / shard, metadata={"format": "pt"})
    found = compare(model_with_tokenizer, changed)

    states, chosen = [], []
    for directory in (model_with_tokenizer, changed):
        model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        outputs: list[torch.Tensor] = []
        model.model.layers[1].register_forward_hook(
            lambda _, inputs, output, to=outputs: to.append(output[0] if isinstance(output, tuple) else output)
        )
        sets: list[torch.Tensor] = []
        for ids in reference_windows(model_with_tokenizer):
            if len(ids) > 1:
                with torch.no_grad():
                    logits = model(torch.tensor([ids]), output_router_logits=True).router_logits[1]
                sets.append(logits.topk(2).indices.sort(-1).values)
        states.append(torch.cat([output.flatten(0, -2) for output in outputs]))
        chosen.append(torch.cat(sets))
    assert found.layers[0].output_error == 0
    assert found.layers[0].routing_agreement == 1
    assert [found.layers[1].weight_error[kind] > 0 for kind in KINDS] == [False, False, True, False, False]
    assert found.layers[1].output_error == pytest.approx(float((states[1] - states[0]).norm() / states[0].norm()), 1e-3)
    agreement = float((chosen[0] == chosen[1]).all(-1).double().mean())
    assert found.layers[1].routing_agreement == pytest.approx(agreement, abs=0.005)  # nearly equal logits may tip


@pytest.mark.parametrize("faulty_layer", [0, 1])
def test_a_fault_shows_in_its_layer_and_not_before(model_with_tokenizer: Path, faulty_layer: int) -> None:
    int8 = quantize(model_with_tokenizer, "int8")
    faulty = Path(shutil.copytree(int8, int8.parent / "faulty"))
    tensors = load_file(faulty / "rank0.safetensors")
    rows = tensors[f"transformer.layers.{faulty_layer}.mlp.proj.weight"][0]
    rows.copy_(rows.roll(1, dims=0))
    save_file(tensors, faulty / "rank0.safetensors")
    found = compare(int8, faulty)
    for layer in found.layers:
        wrong = [kind for kind in KINDS if layer.weight_error[kind] > 0]
        assert wrong == (["mlp.proj"] if layer.layer == faulty_layer else [])
        assert (layer.output_error > 0) == (layer.layer >= faulty_layer)
        assert (layer.routing_agreement < 1) <= (layer.layer > faulty_layer)
    assert found.layers[faulty_layer].weight_error["mlp.proj"] > 0.1


def test_progress_ends_with_the_last_layer(model_with_tokenizer: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = ModelDirectory.open(model_with_tokenizer)
    compare_models(model, model, TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_the_command_gives_a_table_json_a_picture_and_stores(
    model_with_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8, engine = quantize(model_with_tokenizer, "int8"), tmp_path / "engine"
    build_pytorch_engine(int8, engine, device=find_device("cpu"), limits=LimitOverrides())
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = ["compare", str(model_with_tokenizer), str(engine), "--text", str(tmp_path / "text.jsonl")]
    expected = compare(model_with_tokenizer, engine)
    assert run(command) == 0
    assert capsys.readouterr().out == table(expected) + "\n"
    assert run([*command, "--json", "--store"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["layers"][1]["weight_error"].keys() == set(KINDS)
    assert printed["mean_kl"] == expected.mean_kl
    quality = Manifest.load(engine).quality
    assert quality == {"comparison": {"file": "text.jsonl"} | printed}
    pytest.importorskip("matplotlib")
    assert run([*command, "--picture", str(tmp_path / "layers.png")]) == 0
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_picture_is_refused_before_anything_else(
    model_with_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "text.txt").write_text("a b")
    command = ["compare", str(tmp_path / "none"), str(tmp_path / "none"), "--text", str(tmp_path / "text.txt")]
    assert run([*command, "--picture", str(tmp_path / "layers.png")]) == 1
    assert "--picture needs matplotlib" in capsys.readouterr().err


def test_a_text_without_a_token_to_predict_is_refused(model_with_tokenizer: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least two"):
        compare(model_with_tokenizer, model_with_tokenizer, [""])


def test_a_directory_without_a_usable_tokenizer_is_refused(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        compare(model_dir, model_dir)


def test_models_of_different_dimensions_are_refused(model_with_tokenizer: Path, demo_model: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"has vocab_size \d+, .* has 96: they cannot be compared"):
        compare(model_with_tokenizer, demo_model)


def test_an_engine_of_another_runtime_is_refused(model_with_tokenizer: Path, tmp_path: Path) -> None:
    build_pytorch_engine(
        quantize(model_with_tokenizer, "int8"), tmp_path / "e", device=find_device("cpu"), limits=LimitOverrides()
    )
    manifest = (tmp_path / "e" / "manifest.json").read_text()
    (tmp_path / "e" / "manifest.json").write_text(manifest.replace('"runtime": "pytorch"', '"runtime": "tensorrt-llm"'))
    with pytest.raises(InvalidArgument, match="is an engine for tensorrt-llm; only those for pytorch"):
        ModelDirectory.open(tmp_path / "e")
