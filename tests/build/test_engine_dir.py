"""From a checkpoint to an engine directory: self-contained, linked instead of copied, limits that fit the model."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mixtral_build.engine import build_pytorch_engine
from mixtral_build.limits import LimitOverrides
from mixtral_build.quantize import quantize_model
from mixtral_build.verify import verify_directory
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.manifest import Manifest

CPU = find_device("cpu")
WEIGHTS = "rank0.safetensors"
MakeCheckpoint = Callable[[str, str | None], Path]


@pytest.fixture
def make_checkpoint(saved_model: Path, tmp_path: Path) -> MakeCheckpoint:
    def make(precision: str, layout: str | None = None) -> Path:
        target = tmp_path / f"{precision}-{layout}"
        quantize_model(saved_model, target, precision, layout=layout)
        return target

    return make


@pytest.fixture
def checkpoint_dir(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("int8", None)


def build(checkpoint_dir: Path, *, limits: LimitOverrides | None = None, kv_cache_tokens: int | None = None) -> Path:
    engine_dir = checkpoint_dir.parent / f"engine-{checkpoint_dir.name}"
    build_pytorch_engine(
        checkpoint_dir, engine_dir, device=CPU, limits=limits or LimitOverrides(), kv_cache_tokens=kv_cache_tokens
    )
    return engine_dir


@pytest.mark.parametrize("precision", ["16bit", "int8"])
def test_the_manifest_describes_the_engine(make_checkpoint: MakeCheckpoint, precision: str) -> None:
    checkpoint_dir = make_checkpoint(precision, None)
    manifest = Manifest.load(build(checkpoint_dir, kv_cache_tokens=512))
    config = Checkpoint.open(checkpoint_dir).config
    assert (manifest.runtime, manifest.gpu, manifest.precision) == ("pytorch", "cpu", precision)
    assert (manifest.dtype, manifest.kv_cache_dtype, manifest.kv_cache_tokens) == ("bfloat16", "bfloat16", 512)
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.source == config.source
    assert (manifest.model.num_experts, manifest.model.head_size, manifest.model.vocab_size) == (4, 32, 96)
    assert set(manifest.files) == {
        "config.json",
        WEIGHTS,
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/generation_config.json",
    }


def test_it_is_a_valid_checkpoint_with_the_checksums_of_its_files(checkpoint_dir: Path) -> None:
    engine_dir = build(checkpoint_dir)
    summary = verify_directory(engine_dir)
    assert (summary.kind, summary.precision, summary.files) == ("engine", "int8", 5)
    assert summary.tensors == len(Checkpoint.open(checkpoint_dir).names())


def test_weights_of_another_runtime_are_checked_by_their_sha256_alone(checkpoint_dir: Path) -> None:
    engine_dir = build(checkpoint_dir)
    manifest = Manifest.load(engine_dir)
    own_files = {name: info for name, info in manifest.files.items() if name != "config.json"}
    replace(manifest, runtime="package.module:factory", files=own_files).write(engine_dir)
    (engine_dir / "config.json").unlink()
    summary = verify_directory(engine_dir)
    assert (summary.tensors, summary.files) == (0, 4)


def test_weights_are_hard_links(checkpoint_dir: Path) -> None:
    assert os.path.samefile(checkpoint_dir / WEIGHTS, build(checkpoint_dir) / WEIGHTS)


def test_the_engine_outlives_the_checkpoint(checkpoint_dir: Path) -> None:
    engine_dir = build(checkpoint_dir)
    (checkpoint_dir / WEIGHTS).unlink()
    verify_directory(engine_dir)


def test_weights_are_copied_where_links_are_impossible(checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cross_device(source: Path, target: Path) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("mixtral_build.engine.os.link", cross_device)
    engine_dir = build(checkpoint_dir)
    assert not os.path.samefile(checkpoint_dir / WEIGHTS, engine_dir / WEIGHTS)
    verify_directory(engine_dir)


@pytest.mark.parametrize("layout", ["sm80", "sm90"])
def test_kernel_layouts_are_converted_to_the_plain_one(make_checkpoint: MakeCheckpoint, layout: str) -> None:
    converted = build(make_checkpoint("int8", layout))
    plain = build(make_checkpoint("int8", "plain"))
    for name in (WEIGHTS, "config.json"):
        assert (converted / name).read_bytes() == (plain / name).read_bytes()


def test_an_incomplete_checkpoint_is_refused_before_anything_is_written(checkpoint_dir: Path) -> None:
    (checkpoint_dir / WEIGHTS).write_bytes((checkpoint_dir / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut off"):
        build(checkpoint_dir)
    assert [path.name for path in checkpoint_dir.parent.iterdir()] == [checkpoint_dir.name]


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint_dir: Path) -> None:
    (checkpoint_dir / "tokenizer").rename(checkpoint_dir.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="tokenizer does not exist"):
        build(checkpoint_dir)


def test_an_existing_target_is_refused(checkpoint_dir: Path) -> None:
    build(checkpoint_dir)
    with pytest.raises(InvalidArgument, match="exists already"):
        build(checkpoint_dir)


def test_a_kv_cache_that_cannot_hold_one_sequence_is_refused(checkpoint_dir: Path) -> None:
    with pytest.raises(InvalidArgument, match="kv_cache_tokens is 100, it must be at least max_seq_len, which is 128"):
        build(checkpoint_dir, kv_cache_tokens=100)


def test_a_manifest_of_another_model_is_noticed(checkpoint_dir: Path) -> None:
    engine_dir = build(checkpoint_dir)
    manifest = Manifest.load(engine_dir)
    replace(manifest, model=replace(manifest.model, num_hidden_layers=3)).write(engine_dir)
    with pytest.raises(CheckpointError, match="describes another model"):
        verify_directory(engine_dir)


def test_a_checkpoint_for_several_gpus_is_refused(saved_model: Path, tmp_path: Path) -> None:
    quantize_model(saved_model, tmp_path / "split", "int8", tp_size=2)
    with pytest.raises(InvalidArgument, match="is split for 2 GPUs, the PyTorch runtime uses one"):
        build(tmp_path / "split")


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(checkpoint_dir: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"leave no room for a KV cache in the 0 GB of cpu"):
        build_pytorch_engine(
            checkpoint_dir,
            checkpoint_dir.parent / "engine",
            device=find_device("cpu", memory_gb=0.4),
            limits=LimitOverrides(),
        )
    assert [path.name for path in checkpoint_dir.parent.iterdir()] == [checkpoint_dir.name]


def test_an_engine_is_replaced_only_when_asked_and_nothing_else_is(make_checkpoint: MakeCheckpoint) -> None:
    first, second = make_checkpoint("int8", None), make_checkpoint("16bit", None)
    engine_dir = build(first)
    rebuild = partial(build_pytorch_engine, engine_dir=engine_dir, device=CPU, limits=LimitOverrides())
    with pytest.raises(InvalidArgument, match="exists already"):
        rebuild(second)
    assert Manifest.load(engine_dir).precision == "int8"
    rebuild(second, replace_existing=True)
    assert Manifest.load(engine_dir).precision == "16bit"
    Manifest.load(engine_dir).check_files(engine_dir, sha256=True)
    assert [path.name for path in engine_dir.parent.iterdir() if path.name.startswith(".")] == []

    homework = engine_dir.parent / "homework"
    homework.mkdir()
    (homework / "essay.txt").write_text("years of work")
    with pytest.raises(InvalidArgument, match=r"has no manifest\.json; choose another directory"):
        rebuild(first, engine_dir=homework, replace_existing=True)
    assert (homework / "essay.txt").read_text() == "years of work"


def test_a_failed_build_leaves_the_engine_that_was_there(make_checkpoint: MakeCheckpoint) -> None:
    engine_dir = build(make_checkpoint("int8", None))
    broken = make_checkpoint("16bit", None)
    os.truncate(broken / WEIGHTS, 1000)
    with pytest.raises(CheckpointError):
        build_pytorch_engine(broken, engine_dir, device=CPU, limits=LimitOverrides(), replace_existing=True)
    Manifest.load(engine_dir).check_files(engine_dir, sha256=True)
