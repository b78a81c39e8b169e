"""Driving `trtllm-build`: by a script of that name, which stands in for the program and does what a test wants."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixtral_build.cli import run
from mixtral_build.limits import LimitOverrides
from mixtral_build.quantize import quantize_model
from mixtral_build.trtllm_engine import build_trtllm_engine, plan_trtllm_build
from mixtral_build.verify import verify_directory
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import Internal, InvalidArgument
from mixtral_runtime.manifest import Manifest

A100 = find_device("a100")
LIMITS = LimitOverrides(max_batch_size=4, max_seq_len=128)
# It knows nothing of TensorRT-LLM: it writes the files that a successful run leaves, as its arguments say.
STAND_IN = """#!{python}
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
source, target = pathlib.Path(flags["--checkpoint_dir"]), pathlib.Path(flags["--output_dir"])
layout = json.loads((source / "config.json").read_text())["mixtral"]["layout"]
print("building from layout", layout)
sizes = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
build_config = {{name: int(flags["--" + name]) for name in sizes}}
for rank in range(int(flags["--workers"])):
    (target / f"rank{{rank}}.engine").write_bytes(b"engine")
pathlib.Path(flags["--output_timing_cache"]).write_bytes(b"timings")
config = {{"version": "0.0", "pretrained_config": {{}}, "build_config": build_config}}
(target / "config.json").write_text(json.dumps(config))
{ending}
"""
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(ending): puts the stand-in on PATH, with more Python at its end."""

    def put(ending: str = "") -> None:
        import sys

        folder = tmp_path / "bin"
        folder.mkdir()
        script = folder / "trtllm-build"
        script.write_text(STAND_IN.format(python=sys.executable, ending=ending))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.fixture
def checkpoint_dir(saved_model: Path, tmp_path: Path) -> Path:
    quantize_model(saved_model, tmp_path / "int8", "int8")
    return tmp_path / "int8"


def build(checkpoint_dir: Path) -> Path:
    engine_dir = checkpoint_dir.parent / "engine"
    build_trtllm_engine(plan_trtllm_build(checkpoint_dir, device=A100, limits=LIMITS), engine_dir)
    return engine_dir


def test_a_successful_build_has_manifest_log_and_timing_cache(install: Install, checkpoint_dir: Path) -> None:
    install("")
    engine_dir = build(checkpoint_dir)
    manifest = Manifest.load(engine_dir)
    assert (manifest.runtime, manifest.gpu, manifest.precision) == ("tensorrt-llm", "sm80", "int8")
    assert manifest.versions["tensorrt-llm"] == "0.0"
    assert (manifest.limits.max_batch_size, manifest.limits.max_seq_len) == (4, 128)
    assert manifest.source == Checkpoint.open(checkpoint_dir).config.source
    assert set(manifest.files) == {
        "build.log",
        "config.json",
        "model.cache",
        "rank0.engine",
        "tokenizer/chat_template.jinja",
        "tokenizer/generation_config.json",
        "tokenizer/tokenizer.json",
    }
    log = (engine_dir / "build.log").read_text()
    assert log.startswith("$ trtllm-build --checkpoint_dir ")
    assert "building from layout sm80" in log  # the weights were plain
    assert verify_directory(engine_dir).files == 7


def test_weights_in_the_right_layout_are_used_as_they_are(install: Install, saved_model: Path, tmp_path: Path) -> None:
    install("")
    quantize_model(saved_model, tmp_path / "int8-sm80", "int8", layout="sm80")
    log = (build(tmp_path / "int8-sm80") / "build.log").read_text()
    assert f"--checkpoint_dir {tmp_path / 'int8-sm80'} " in log


def test_every_rank_has_an_engine(install: Install, saved_model: Path, tmp_path: Path) -> None:
    install("")
    quantize_model(saved_model, tmp_path / "split", "int8", layout="sm80", tp_size=2)
    assert {"rank0.engine", "rank1.engine"} <= set(Manifest.load(build(tmp_path / "split")).files)


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        ("print('out of memory'); sys.exit(3)", r"exit status 3, its log is .*engine\.build\.log and ends: out of mem"),
        ("(target / 'rank0.engine').unlink()", "did not write rank0.engine"),
        ("(target / 'rank0.engine').write_bytes(b'')", "did not write rank0.engine"),
        ("(target / 'config.json').write_text('{}')", "config.json that is not an engine's"),
        (
            "build_config['max_seq_len'] = 64; (target / 'config.json').write_text(json.dumps(config))",
            "built max_seq_len 64, 128 was asked for",
        ),
    ],
)
def test_a_build_that_failed_leaves_no_engine(
    install: Install, checkpoint_dir: Path, ending: str, sentence: str
) -> None:
    install(ending)
    with pytest.raises(Internal, match=sentence):
        build(checkpoint_dir)
    left = {path.name for path in checkpoint_dir.parent.iterdir()} - {"bin", "int8"}
    assert left <= {"engine.build.log"}
    assert ("engine.build.log" in left) == ("sys.exit" in ending)


def test_without_the_program_there_is_one_clear_error(
    checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match=r"trtllm-build is not installed, .*--dry-run prints the command"):
        build(checkpoint_dir)
    assert {path.name for path in tmp_path.iterdir()} == {"int8"}


def test_a_timing_cache_that_is_not_there_is_refused(checkpoint_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere is not a file"):
        plan_trtllm_build(checkpoint_dir, device=A100, limits=LIMITS, timing_cache=tmp_path / "nowhere")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_prints_what_would_be_done(
    checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "engine",
        checkpoint_dir,
        tmp_path / "engine",
        "--runtime",
        "tensorrt-llm",
        "--gpu",
        "h100",
        "--dry-run",
    )
    code, out, err = call(capsys, *arguments)
    convert, command = out.splitlines()
    assert code == 0
    assert convert == f"mixtral-build convert {checkpoint_dir} {checkpoint_dir}-sm90 --layout sm90"
    assert command.startswith(
        f"trtllm-build --checkpoint_dir {checkpoint_dir}-sm90 --output_dir {tmp_path / 'engine'} "
    )
    assert "warning: int8 experts run with the A100's kernels on SM90" in err
    assert not (tmp_path / "engine").exists()

    code, out, _ = call(capsys, *arguments, "--json", "--preset", "throughput")
    printed: dict[str, Any] = json.loads(out)
    assert [command[0] for command in printed["commands"]] == ["mixtral-build", "trtllm-build"]
    assert printed["limits"]["max_num_tokens"] == 8192


def test_the_command_builds_an_engine(
    install: Install, checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("")
    code, out, err = call(
        capsys, "engine", checkpoint_dir, tmp_path / "engine", "--runtime", "tensorrt-llm", "--gpu", "a100", "--json"
    )
    assert (code, json.loads(out)["runtime"]) == (0, "tensorrt-llm")
    assert err.startswith("runtime tensorrt-llm: asked for\ngpu sm80: asked for\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--runtime", "tensorrt-llm", "--gpu", "cpu"), "TensorRT-LLM needs a GPU"),
        (("--runtime", "pytorch", "--gpu", "cpu", "--dry-run"), "--dry-run prints the TensorRT-LLM command"),
    ],
)
def test_what_cannot_be_is_one_line(
    checkpoint_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    code, out, err = call(capsys, "engine", checkpoint_dir, tmp_path / "engine", *options)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {sentence}")
