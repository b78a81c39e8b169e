"""`mixtral-build` as a script sees it: exit codes, results on stdout, everything else on stderr."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixtral_build.cli import run
from mixtral_runtime.manifest import Manifest

Captured = pytest.CaptureFixture[str]


def call(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: Captured, *arguments: object) -> dict[str, Any]:
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    return result


def test_from_a_model_to_a_verified_engine(saved_model: Path, tmp_path: Path, capsys: Captured) -> None:
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"

    quantized = call_json(capsys, "quantize", saved_model, checkpoint, "--precision", "int8", "--layout", "sm80")
    assert quantized["precision"] == "int8"
    assert quantized["layout"] == "sm80"
    assert quantized["bytes"] == (checkpoint / "rank0.safetensors").stat().st_size

    assert call_json(capsys, "verify", checkpoint)["kind"] == "checkpoint"

    built = call_json(capsys, "engine", checkpoint, engine, "--gpu", "cpu", "--max-batch-size", 4, "--max-seq-len", 64)
    assert built["runtime"] == "pytorch"
    assert built["limits"]["max_batch_size"] == Manifest.load(engine).limits.max_batch_size == 4
    assert built["limits"]["max_input_len"] == 63

    assert call_json(capsys, "verify", engine)["files"] == 5


def test_results_go_to_stdout_and_the_rest_to_stderr(saved_model: Path, tmp_path: Path, capsys: Captured) -> None:
    code, out, err = call(capsys, "quantize", saved_model, tmp_path / "checkpoint")
    assert code == 0
    assert "precision: int8\n" in out
    assert err == "quantising\n"  # a bar only where there is a terminal
    code, out, err = call(capsys, "engine", tmp_path / "checkpoint", tmp_path / "engine", "--gpu", "cpu")
    assert code == 0
    assert "limits: max_batch_size 16, max_input_len 127, max_seq_len 128" in out
    assert err == "runtime pytorch: TensorRT-LLM is not installed\ngpu cpu: asked for\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "nowhere", "out"],
        ["engine", "nowhere", "out"],
        ["convert", "nowhere", "out", "--layout", "sm80"],
        ["verify", "nowhere"],
        ["quantize", "nowhere", "out", "--json"],
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(arguments: list[str], capsys: Captured) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: nowhere is not a directory"
    assert "Traceback" not in err


def test_a_failure_of_the_file_system_is_one_line(saved_model: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "quantize", saved_model, tmp_path / "file" / "checkpoint")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "checkpoint could not be made: Not a directory" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Usage"),
        (["quantise"], "quantise"),
        (["quantize", "only-one"], "CHECKPOINT_DIR"),
        (["quantize", "a", "b", "--precision", "int3"], "int3"),
        (["quantize", "a", "b", "--layout", "sm70"], "sm70"),
        (["engine", "a", "b", "--max-batch-size", "0"], "0"),
        (["compare", "a", "b"], "--text"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], word: str, capsys: Captured) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert word in err


@pytest.mark.parametrize("arguments", [[], ["quantize"], ["convert"], ["engine"], ["plan"], ["verify"], ["compare"]])
def test_every_command_has_help(arguments: list[str], capsys: Captured) -> None:
    code, out, _ = call(capsys, *arguments, "--help")
    assert code == 0
    assert out.startswith("Usage: mixtral-build")


INTERRUPT_HALFWAY = """
import os, signal, sys
import mixtral_build.cli as cli

real = cli.quantize_model

def interrupted(*args, progress, **options):
    def show(done, total):
        progress(done, total)
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGINT)
    return real(*args, progress=show, **options)

cli.quantize_model = interrupted
cli.main()
"""


def test_ctrl_c_is_exit_code_130_and_leaves_what_can_be_continued(saved_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPT_HALFWAY, "quantize", str(saved_model), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 130
    assert result.stdout == ""
    partial = tmp_path / ".checkpoint.partial"
    advice = f"what is finished is kept in {partial}, the same command continues"
    assert [line for line in result.stderr.splitlines() if line][-2:] == [advice, "interrupted"]
    assert list(tmp_path.iterdir()) == [partial]


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mixtral_build", "--help"], capture_output=True, text=True, check=True
    )
    assert "quantize" in result.stdout
