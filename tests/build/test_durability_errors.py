"""What the disk or another run can do to a build: one sentence, the source untouched, the target absent or complete."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killable_build import start_quantize
from safetensors.torch import load_file, save_file

from mixtral_build.quantize import quantize_model
from mixtral_build.staging import staged, staged_directory
from mixtral_runtime.errors import CheckpointError, InvalidArgument, MixtralError, StorageError
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.safetensors_writer import SafetensorsWriter

INDEX = "model.safetensors.index.json"


def fingerprint(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture(scope="session")
def whole(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("whole") / "out"
    quantize_model(saved_model, target, "int8")
    return (target / "rank0.safetensors").read_bytes()


RUN = """
import os, sys
from pathlib import Path
from mixtral_build.quantize import quantize_model
from mixtral_runtime.errors import MixtralError

def run(model, target, **options):
    try:
        quantize_model(Path(model), Path(target), "int8", notify=print, **options)
    except MixtralError as error:
        print(f"{type(error).__name__}: {error}")
"""

FULL_FROM_THE_START = (
    RUN
    + """
run(*sys.argv[1:])
"""
)

FULL_HALFWAY = (
    RUN
    + """
model, target = sys.argv[1:]
filler = Path(target).with_name("filler")

def fill(done, total):
    if done > total / 2 and not filler.exists():
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

run(model, target, progress=fill)
print(os.path.exists(target))
filler.unlink()
run(model, target)
"""
)


def run_on_small_disk(script: str, model_dir: Path, directory: Path, size: str) -> list[str]:
    """The script's lines, with `directory`/out as target on a file system of that size."""
    mount = f'mount -t tmpfs -o size={size} none "$0" && shift 0 && exec "$@"'
    inside = f"{mount}; exit 99"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, str(directory)]
    program = [sys.executable, "-c", script, str(model_dir), str(directory / "out")]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    probe = subprocess.run([*command, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no file system can be mounted here")
    result = subprocess.run([*command, *program], capture_output=True, text=True, check=True, timeout=120)
    return result.stdout.splitlines()


def test_a_disk_that_is_too_small_is_seen_before_any_work(saved_model: Path, tmp_path: Path) -> None:
    before = fingerprint(saved_model)
    (line,) = run_on_small_disk(FULL_FROM_THE_START, saved_model, tmp_path, "100k")
    assert line == f"StorageError: {tmp_path} has 0.1 MB free, 0.3 MB are needed"
    assert fingerprint(saved_model) == before


def test_a_disk_that_fills_up_halfway_and_is_cleared(saved_model: Path, tmp_path: Path) -> None:
    lines = run_on_small_disk(FULL_HALFWAY, saved_model, tmp_path, "8m")
    sentence, exists, resumed = lines
    partial = tmp_path / ".out.partial"
    assert sentence == (
        f"StorageError: {tmp_path}/out could not be made: No space left on device "
        f"({partial}/files/rank0.safetensors); what is finished is kept in {partial}, the same command continues"
    )
    assert exists == "False"
    assert resumed.startswith("resuming: ")


FILE_TOO_LARGE = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    + RUN
    + """
run(*sys.argv[1:])
print(os.path.exists(sys.argv[2]))
"""
)


def test_a_file_that_may_not_grow(saved_model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FILE_TOO_LARGE, str(saved_model), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    sentence, exists = result.stdout.splitlines()
    assert sentence.startswith(f"StorageError: {tmp_path}/out could not be made: File too large ({tmp_path}")
    assert exists == "False"
    assert list(tmp_path.iterdir()) == []  # nothing was finished, so nothing is kept


def test_a_place_that_cannot_be_written(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for target, reason in ((tmp_path / "file" / "out", "Not a directory"), (Path("/proc/out"), "No such file")):
        with pytest.raises(StorageError, match=rf"out could not be made: {reason}"):
            quantize_model(saved_model, target, "int8")


def test_two_runs_at_once(saved_model: Path, whole: bytes, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged(target, {}):
        other = start_quantize(saved_model, target, "int8", {})
        other.join(60)
        assert other.exitcode == 1
        with pytest.raises(InvalidArgument, match="out is being made by another process"):
            quantize_model(saved_model, target, "int8")
    shutil.rmtree(target)
    quantize_model(saved_model, target, "int8")
    assert (target / "rank0.safetensors").read_bytes() == whole


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def make() -> None:
        with staged_directory(target) as partial:
            (partial / "mine").write_text("mine")
            target.mkdir()
            (target / "theirs").write_text("theirs")

    with pytest.raises(StorageError, match="could not be made"):
        make()
    assert [path.name for path in target.iterdir()] == ["theirs"]


def test_leavings_of_a_run_that_was_killed_after_the_rename(saved_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "journal.jsonl").write_text('{"key": {}}\n')
    with pytest.raises(InvalidArgument, match="exists already"):
        quantize_model(saved_model, target, "int8")
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_is_replaced_at_the_end_only_where_that_is_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ("first", "second"):
        with staged_directory(target, replace_holding="mark") as partial:
            assert content == "first" or (target / "mark").read_text() == "first"
            (partial / "mark").write_text(content)
    assert (target / "mark").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]
    for replace_holding, sentence in ((None, "exists already"), ("other", "exists and has no other")):
        with (
            pytest.raises(InvalidArgument, match=sentence),
            staged_directory(target, replace_holding=replace_holding),
        ):
            pass
    assert (target / "mark").read_text() == "second"


@pytest.mark.parametrize("part", ["w1", "w2", "w3"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_the_very_tensor_with_a_bad_value_is_named(model_dir: Path, tmp_path: Path, part: str, value: float) -> None:
    name = f"model.layers.1.block_sparse_moe.experts.2.{part}.weight"
    path = model_dir / json.loads((model_dir / INDEX).read_text())["weight_map"][name]
    tensors = load_file(path)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    before = fingerprint(model_dir)
    with pytest.raises(CheckpointError, match=f"^{name} has values that are infinite or not a number in bfloat16$"):
        quantize_model(model_dir, tmp_path / "out", "int8")
    assert fingerprint(model_dir) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_index_that_puts_a_tensor_elsewhere(model_dir: Path, tmp_path: Path) -> None:
    index = json.loads((model_dir / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = next(s for s in shards if s != index["weight_map"]["lm_head.weight"])
    (model_dir / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json disagrees with the shards: "):
        quantize_model(model_dir, tmp_path / "out", "int8")


def test_a_shard_with_more_than_the_index_names(model_dir: Path, tmp_path: Path) -> None:
    index = json.loads((model_dir / INDEX).read_text())
    shard = index["weight_map"].pop("lm_head.weight")
    (model_dir / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{shard} has lm_head.weight, not named there"):
        quantize_model(model_dir, tmp_path / "out", "int8")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, b"\x08" + bytes(7) + b"not json" * 20], ids=repr)
def test_a_shard_that_is_something_else(model_dir: Path, tmp_path: Path, damage: bytes) -> None:
    shard = sorted(model_dir.glob("*.safetensors"))[0]
    shard.write_bytes(damage)
    with pytest.raises(MixtralError, match="is damaged or cut off"):
        quantize_model(model_dir, tmp_path / "out", "int8")
    assert shard.read_bytes() == damage


def test_a_writer_says_which_file_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*full"):
        SafetensorsWriter(tmp_path / "full", [TensorSpec("a", (4,), torch.float32)])
    assert os.path.lexists(tmp_path / "full")
