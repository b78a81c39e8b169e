"""`verify` reads everything and names the first file or tensor that is not what was written."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mixtral_build.quantize import quantize_model
from mixtral_build.verify import verify_directory
from mixtral_runtime.errors import CheckpointError

RANKS = 2


@pytest.fixture
def checkpoint(saved_model: Path, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    quantize_model(saved_model, target, "int8", tp_size=RANKS)
    return target


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def tensor_offset(path: Path, name: str) -> int:
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    return int(json.loads(data[8 : 8 + header])[name]["data_offsets"][0]) + 8 + header


def test_a_sound_checkpoint(checkpoint: Path) -> None:
    summary = verify_directory(checkpoint)
    assert (summary.kind, summary.precision) == ("checkpoint", "int8")
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    assert summary.files == len(names) - 1  # all but the checksums themselves
    assert summary.tensors == RANKS * len(load_file(checkpoint / "rank0.safetensors"))


def test_progress_ends_at_the_total(checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify_directory(checkpoint, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert 0.9 < seen[-1][0] / seen[-1][1] <= 1


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("name", ["transformer.layers.1.mlp.proj.weight", "lm_head.weight"])
def test_one_changed_bit_names_its_tensor(checkpoint: Path, rank: int, name: str) -> None:
    path = checkpoint / f"rank{rank}.safetensors"
    flip(path, tensor_offset(path, name))
    with pytest.raises(CheckpointError, match=f"rank{rank}.safetensors: {name} is damaged: SHA-256 "):
        verify_directory(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"])
def test_another_file_that_was_changed_is_named(checkpoint: Path, name: str) -> None:
    flip(checkpoint / name, 0)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: SHA-256 "):
        verify_directory(checkpoint)


def test_a_config_that_was_edited(checkpoint: Path) -> None:
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace("1e-05", "2e-05"))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        verify_directory(checkpoint)


def test_a_file_that_is_gone(checkpoint: Path) -> None:
    (checkpoint / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist, sha256\.json lists it"):
        verify_directory(checkpoint)


def test_a_file_of_weights_from_another_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "rank1.safetensors").write_bytes((checkpoint / "rank0.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors: .* is damaged"):
        verify_directory(checkpoint)


def test_the_file_may_be_written_anew_with_the_same_tensors(checkpoint: Path) -> None:
    path = checkpoint / "rank0.safetensors"
    save_file(load_file(path), path)  # another order and header
    verify_directory(checkpoint)


def test_a_checkpoint_of_another_tool_has_its_structure_checked(checkpoint: Path) -> None:
    (checkpoint / "sha256.json").unlink()
    summary = verify_directory(checkpoint)
    assert summary.files == 0
    assert summary.tensors > 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not a list of checksums"),
        ('{"files": {}}', "is not a list of checksums"),
        ('{"files": {}, "tensors": {}, "format_version": 2}', "has format_version 2, this program reads 1"),
    ],
)
def test_checksums_that_cannot_be_read(checkpoint: Path, text: str, sentence: str) -> None:
    (checkpoint / "sha256.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        verify_directory(checkpoint)
