"""An engine's manifest: read back as written, strict about its keys, and able to tell a damaged file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import MANIFEST_NAME, FileInfo, Manifest, ModelInfo, Returns, describe_files

MANIFEST = Manifest(
    runtime="pytorch",
    versions={"mixtral-triton": "0.1.0", "torch": "2.13.0"},
    gpu="cpu",
    precision="int8",
    dtype="bfloat16",
    kv_cache_dtype="bfloat16",
    limits=EngineLimits(max_batch_size=16, max_input_len=1023, max_seq_len=1024, max_num_tokens=512),
    model=ModelInfo(
        architecture="MixtralForCausalLM",
        num_hidden_layers=4,
        hidden_size=256,
        vocab_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_size=64,
        num_experts=8,
        top_k=2,
        max_position_embeddings=1024,
    ),
    returns=Returns(log_probs=True, prompt_log_probs=True, context_logits=False, generation_logits=False),
    source="0" * 64,
    files={},
)


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "weights").write_bytes(b"some weights")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    files = describe_files(tmp_path, ["weights", "tokenizer/tokenizer.json"])
    replace(MANIFEST, files=files).write(tmp_path)
    return tmp_path


def change(engine_dir: Path, *path: str, **keys: Any) -> None:
    """Sets keys of the object at `path`; a value of `...` removes the key."""
    file = engine_dir / MANIFEST_NAME
    data = json.loads(file.read_text())
    target = data
    for part in path:
        target = target[part]
    target.update(keys)
    for key, value in keys.items():
        if value is ...:
            del target[key]
    file.write_text(json.dumps(data))


def complaint(engine_dir: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Manifest.load(engine_dir).check_files(engine_dir, sha256=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_reads_back_as_it_was_written(engine_dir: Path) -> None:
    manifest = Manifest.load(engine_dir)
    assert replace(manifest, files={}) == MANIFEST
    assert manifest.files["weights"].size == 12
    manifest.check_files(engine_dir, sha256=True)


def test_checking_contents_reports_the_bytes_it_read(engine_dir: Path) -> None:
    read: list[int] = []
    Manifest.load(engine_dir).check_files(engine_dir, sha256=True, progress=read.append)
    assert sum(read) == 12 + 2


def test_a_directory_without_one_is_not_an_engine(tmp_path: Path) -> None:
    assert "mixtral-build engine" in complaint(tmp_path)


def test_one_that_is_not_json(engine_dir: Path) -> None:
    (engine_dir / MANIFEST_NAME).write_text("runtime: pytorch")
    assert "manifest.json is not JSON" in complaint(engine_dir)


@pytest.mark.parametrize("path", [(), ("limits",), ("model",), ("returns",), ("files", "weights")])
def test_an_unknown_key_is_refused_wherever_it_stands(engine_dir: Path, path: tuple[str, ...]) -> None:
    change(engine_dir, *path, surprise=1)
    assert "has the unknown key surprise" in complaint(engine_dir)


@pytest.mark.parametrize(
    ("path", "key"), [((), "runtime"), (("limits",), "max_seq_len"), (("files", "weights"), "sha256")]
)
def test_a_missing_key_is_named(engine_dir: Path, path: tuple[str, ...], key: str) -> None:
    change(engine_dir, *path, **{key: ...})
    assert f"has no key {key}" in complaint(engine_dir)


def test_a_part_that_is_not_an_object_is_named(engine_dir: Path) -> None:
    change(engine_dir, limits=4096)
    assert "limits is not an object" in complaint(engine_dir)
    change(engine_dir, files=["weights"])


def test_another_format_version_is_refused_with_both_and_the_command(engine_dir: Path) -> None:
    change(engine_dir, format_version=2)
    assert "format_version is 2, this program reads 1; build the engine again with `mixtral-build engine`" in complaint(
        engine_dir
    )


def test_a_missing_file_is_named(engine_dir: Path) -> None:
    (engine_dir / "weights").unlink()
    assert "weights does not exist, the manifest lists it" in complaint(engine_dir)


def test_a_shorter_file_is_seen_without_reading_it(engine_dir: Path) -> None:
    (engine_dir / "weights").write_bytes(b"some weight")
    with pytest.raises(CheckpointError, match="weights has 11 bytes, the manifest says 12"):
        Manifest.load(engine_dir).check_files(engine_dir)


def test_one_changed_byte_is_seen_when_contents_are_checked(engine_dir: Path) -> None:
    (engine_dir / "weights").write_bytes(b"some Weights")
    manifest = Manifest.load(engine_dir)
    manifest.check_files(engine_dir)
    assert manifest.files["weights"].sha256 in complaint(engine_dir)


def test_the_digest_is_sha256() -> None:
    empty = FileInfo(0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert describe_files(Path("/dev"), ["null"])["null"] == empty
