"""A build that is killed at any moment and started again continues, and ends with the same bytes."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from killable_build import kill_at, start_engine, start_quantize

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.engine import build_pytorch_engine
from mixtral_build.limits import LimitOverrides
from mixtral_build.quantize import quantize_model
from mixtral_build.staging import staged
from mixtral_build.verify import verify_directory
from mixtral_runtime.devices import find_device
from mixtral_runtime.safetensors_reader import SafetensorsFile

STEPS = 18  # lines of the journal of a model of two layers: the key, and 17 weights


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_number_of_steps_is_what_the_tests_assume(saved_model: Path, tmp_path: Path) -> None:
    process = start_quantize(saved_model, tmp_path / "out", "int8", {})
    assert kill_at(process, tmp_path / "out", STEPS + 1) is False  # it never has more, so it ended


@pytest.fixture(scope="session")
def whole(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An int8 checkpoint that nothing interrupted."""
    target = tmp_path_factory.mktemp("whole") / "out"
    quantize_model(saved_model, target, "int8")
    return contents(target)


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere_it_continues(saved_model: Path, whole: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    rng, target, heard = random.Random(seed), tmp_path / "out", list[str]()
    lines = rng.randrange(STEPS + 1)
    process = start_quantize(saved_model, target, "int8", {})
    if kill_at(process, target, lines, rng.uniform(0, 0.002)):
        done = max(0, len((tmp_path / ".out.partial" / "journal.jsonl").read_bytes().splitlines()) - 1)
        quantize_model(saved_model, target, "int8", notify=heard.append)
        assert [sentence.startswith("resuming: ") for sentence in heard] == [True] * bool(done)
    assert contents(target) == whole
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 4, 8])
def test_killed_while_it_finishes(saved_model: Path, whole: dict[str, bytes], tmp_path: Path, delay_ms: int) -> None:
    target = tmp_path / "out"
    if kill_at(start_quantize(saved_model, target, "int8", {}), target, STEPS, delay_ms / 1000):
        quantize_model(saved_model, target, "int8")
    assert contents(target) == whole


def test_killed_again_and_again_it_still_advances(saved_model: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    target, kills = tmp_path / "out", 0
    while not target.exists():
        kills += kill_at(start_quantize(saved_model, target, "int8", {}, kills + 2), target, kills + 2)
        assert kills < STEPS
    assert kills > STEPS / 2
    assert contents(target) == whole


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("16bit", {}),
        ("int8", {"layout": "sm80"}),
        ("int8", {"tp_size": 2}),
        ("fp8", {"calibration": CalibrationOptions(samples=4, tokens=16)}),
        ("awq", {"calibration": CalibrationOptions(samples=4, tokens=16)}),
    ],
    ids=["16bit", "int8-sm80", "int8-two-ranks", "fp8", "awq"],
)
def test_every_kind_of_checkpoint_continues(
    grouped_model: Path, tmp_path: Path, precision: str, options: dict[str, Any]
) -> None:
    quantize_model(grouped_model, tmp_path / "whole", precision, **options)
    target, heard = tmp_path / "out", list[str]()
    assert kill_at(start_quantize(grouped_model, target, precision, options, 6), target, 6)
    quantize_model(grouped_model, target, precision, notify=heard.append, **options)
    assert heard[-1].startswith("resuming: ")
    assert not [sentence for sentence in heard if sentence.startswith("calibrating")]
    assert contents(target) == contents(tmp_path / "whole")


def test_an_engine_continues(saved_model: Path, tmp_path: Path) -> None:
    checkpoint, target, heard = tmp_path / "checkpoint", tmp_path / "engine", list[str]()
    quantize_model(saved_model, checkpoint, "int8", layout="sm80")  # in a layout that has to be converted
    build_pytorch_engine(checkpoint, tmp_path / "whole", device=find_device("cpu"), limits=LimitOverrides())
    for lines in (8, STEPS + 2, STEPS + 5):  # while it converts, and while it computes checksums of files
        kill_at(start_engine(checkpoint, target), target, lines)
    if not target.exists():
        build_pytorch_engine(
            checkpoint, target, device=find_device("cpu"), limits=LimitOverrides(), notify=heard.append
        )
        assert heard[0].startswith("resuming: ")
    assert contents(target) == contents(tmp_path / "whole")
    assert verify_directory(target).kind == "engine"


@pytest.fixture
def killed(saved_model: Path, tmp_path: Path) -> Path:
    """The target of an int8 run that was killed halfway."""
    target = tmp_path / "out"
    assert kill_at(start_quantize(saved_model, target, "int8", {}, STEPS // 2), target, STEPS // 2)
    return target


def test_what_is_done_is_not_done_again(saved_model: Path, killed: Path) -> None:
    heard, progress = list[str](), list[tuple[int, int]]()
    quantize_model(
        saved_model, killed, "int8", notify=heard.append, progress=lambda done, total: progress.append((done, total))
    )
    (sentence,) = heard
    done, of = int(sentence.split()[1]), int(sentence.split()[3])
    assert sentence == f"resuming: {done} of {of} tensors are done"
    assert of == len(SafetensorsFile(killed / "rank0.safetensors").names())
    assert 0 < done < of
    first, total = progress[0]
    assert 0.1 < first / total < 1
    assert progress[-1] == (total, total)


@pytest.mark.parametrize("options", [{"layout": "sm80"}, {"dtype": "float16"}, {"tp_size": 2}], ids=str)
def test_other_options_start_anew(saved_model: Path, killed: Path, options: dict[str, Any]) -> None:
    heard: list[str] = []
    quantize_model(saved_model, killed, "int8", notify=heard.append, **options)
    partial = killed.parent / ".out.partial"
    assert heard == [f"starting anew: {partial} was begun from another model or with other options"]
    quantize_model(saved_model, killed.parent / "direct", "int8", **options)
    assert contents(killed) == contents(killed.parent / "direct")


def test_a_changed_model_starts_anew(model_dir: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    target, heard = tmp_path / "out", list[str]()
    assert kill_at(start_quantize(model_dir, target, "int8", {}, STEPS // 2), target, STEPS // 2)
    shard = sorted(model_dir.glob("*.safetensors"))[0]
    os.utime(shard)  # written again, of the same size
    quantize_model(model_dir, target, "int8", notify=heard.append)
    assert [sentence.split(":")[0] for sentence in heard] == ["starting anew"]
    assert contents(target) == whole


def test_what_was_damaged_meanwhile_is_done_again(saved_model: Path, whole: dict[str, bytes], killed: Path) -> None:
    weights = killed.parent / ".out.partial" / "files" / "rank0.safetensors"
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + header])["transformer.vocab_embedding.weight"]["data_offsets"]
    data[8 + header + start] ^= 1
    weights.write_bytes(data)
    quantize_model(saved_model, killed, "int8")
    assert contents(killed) == whole


@pytest.mark.parametrize("torn", [b'{"step": "lm_he', b"\x00" * 20 + b"\n"], ids=["cut off", "zeros"])
def test_a_torn_journal_counts_up_to_the_tear(
    saved_model: Path, whole: dict[str, bytes], killed: Path, torn: bytes
) -> None:
    heard: list[str] = []
    with (killed.parent / ".out.partial" / "journal.jsonl").open("ab") as journal:
        journal.write(torn)
    quantize_model(saved_model, killed, "int8", notify=heard.append)
    assert heard[0].startswith("resuming: ")
    assert contents(killed) == whole


def test_a_journal_whose_files_are_gone_counts_for_nothing(
    saved_model: Path, whole: dict[str, bytes], killed: Path
) -> None:
    (killed.parent / ".out.partial" / "files" / "rank0.safetensors").unlink()
    quantize_model(saved_model, killed, "int8")
    assert contents(killed) == whole


def test_an_artifact_outlives_the_run(tmp_path: Path) -> None:
    key, tensors = {"what": "a calibration"}, {"scale": torch.tensor([0.1, 3.0]), "counts": torch.tensor([3, 4])}

    def fail() -> None:
        with staged(tmp_path / "out", key) as staging:
            assert staging.load_artifact("calibration") is None
            staging.save_artifact("calibration", tensors)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with staged(tmp_path / "out", key) as staging:
        found = staging.load_artifact("calibration")
        assert found is not None
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert list((tmp_path / "out").iterdir()) == []
