"""`mixtral-build plan`: the published figures from a config.json alone, and plain words for what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixtral_build.cli import run

Captured = pytest.CaptureFixture[str]
SMALL_SAMPLE = (512, 256)  # enough to go through the measurement; its figures are not looked at here


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = SMALL_SAMPLE
    monkeypatch.setattr("mixtral_build.machine_speed.ROWS", rows)
    monkeypatch.setattr("mixtral_build.machine_speed.COLUMNS", columns)


@pytest.fixture
def config_file(mixtral_8x7b_json: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(mixtral_8x7b_json))
    return path


def call(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    code = run(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: Captured, *arguments: object, code: int = 0) -> dict[str, Any]:
    found, out, _ = call(capsys, *arguments, "--json")
    assert found == code
    result: dict[str, Any] = json.loads(out)
    return result


def step(plan: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for step in plan["steps"] if step["name"] == name)
    return found


def test_int8_on_one_a100(config_file: Path, tmp_path: Path, capsys: Captured) -> None:
    plan = call_json(capsys, config_file, "--precision", "int8", "--gpu", "a100", "--work-dir", tmp_path)
    assert plan["fits"]
    assert plan["size"]["weights"] == pytest.approx(47.0e9, rel=0.002)
    assert plan["size"]["kv_bytes_per_token"] == 128 * 1024
    assert 190_000 <= plan["memory"]["kv_tokens"] <= 200_000
    assert plan["largest_batch"] == {"2048": 97, "8192": 24, "32768": 6}
    assert plan["largest_context"]["1"] == 32768
    assert plan["decode_floor_s"] == pytest.approx(6.4e-3, rel=0.01)
    assert plan["prefill_floor_s"] == pytest.approx(42e-3, rel=0.01)
    assert [step["name"] for step in plan["steps"]] == ["quantize", "engine for pytorch", "engine for tensorrt-llm"]
    assert step(plan, "quantize")["disk"] == plan["size"]["weights"]
    assert step(plan, "quantize")["memory"] < 1 << 30
    assert step(plan, "engine for tensorrt-llm")["seconds"] is None
    assert not list(tmp_path.glob(".plan-*"))


def test_fp8_on_one_h100(config_file: Path, tmp_path: Path, capsys: Captured) -> None:
    plan = call_json(capsys, config_file, "--precision", "fp8", "--gpu", "h100", "--work-dir", tmp_path)
    assert plan["kv_cache"] == "fp8"
    assert plan["size"]["kv_bytes_per_token"] == 64 * 1024
    assert 380_000 <= plan["memory"]["kv_tokens"] <= 400_000
    assert step(plan, "calibrate")["memory"] < 5 << 30


def test_calibration_of_half_a_million_tokens_stays_below_5_gib(
    config_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    for precision in ("fp8", "awq"):
        arguments = ("--precision", precision, "--gpu", "h100", "--work-dir", tmp_path)
        plan = call_json(capsys, config_file, *arguments, "--calibration-tokens", 2**19)
        assert step(plan, "calibrate")["memory"] < 5 << 30
        assert step(plan, "calibrate")["disk"] == 2**19 * 4096 * 2  # the hidden states lie in a file


def test_fp8_on_an_a100_is_planned_for_the_pytorch_runtime_and_said_to_be_converted(
    config_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    for options in (("--precision", "fp8"), ("--precision", "int8", "--kv-cache", "fp8")):
        code, out, err = call(capsys, config_file, "--gpu", "a100", "--work-dir", tmp_path, *options)
        assert (code, "fp8 KV cache, on a100" in out) == (0, True)
        assert "warning: a100 is SM80 and has no FP8 arithmetic: the kernels of the PyTorch runtime convert" in err
        plan = call_json(capsys, config_file, "--gpu", "a100", "--work-dir", tmp_path, *options)
        assert "engine for tensorrt-llm" not in {one["name"] for one in plan["steps"]}
        assert plan["converted"].startswith("a100 is SM80")
    plan = call_json(capsys, config_file, "--precision", "fp8", "--gpu", "h100", "--work-dir", tmp_path)
    assert plan["converted"] is None


def test_what_does_not_fit_is_said_with_the_nearest_thing_that_does(
    config_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = (config_file, "--precision", "16bit", "--gpu", "a100", "--work-dir", tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 1
    assert "93.41 GB  46.70 billion parameters" in out
    assert "what fits: --precision int8 on a100, --precision 16bit on h200, --precision 16bit on 2 x a100" in err
    plan = call_json(capsys, *arguments, code=1)
    assert (plan["fits"], plan["memory"]["kv_tokens"]) == (False, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--context", 32768, "--batch", 8), "8 sequences of 32768 tokens need more KV cache"),
        (("--context", 32768, "--batch", 8), "what fits: 24832 tokens each or 6 sequences"),
        (("--context", 32769), "the context is 32769, the model's limit is 32768"),
    ],
)
def test_more_than_the_kv_cache_is_said(
    config_file: Path, tmp_path: Path, capsys: Captured, options: tuple[object, ...], sentence: str
) -> None:
    code, _, err = call(capsys, config_file, "--gpu", "a100", "--work-dir", tmp_path, *options)
    assert code == 1
    assert sentence in err


def test_what_was_asked_for_and_fits_is_no_error(config_file: Path, tmp_path: Path, capsys: Captured) -> None:
    plan = call_json(capsys, config_file, "--gpu", "a100", "--context", 32768, "--batch", 6, "--work-dir", tmp_path)
    assert plan["fits"]


def test_memory_can_be_given(config_file: Path, tmp_path: Path, capsys: Captured) -> None:
    plan = call_json(
        capsys, config_file, "--precision", "awq", "--gpu", "cpu", "--gpu-memory", 64, "--work-dir", tmp_path
    )
    assert plan["device"]["memory"] == 64 * 10**9
    assert plan["decode_floor_s"] is None
    assert "engine for tensorrt-llm" not in [step["name"] for step in plan["steps"]]


def test_weights_larger_than_a_cpu_s_memory_are_a_warning_with_what_they_cost(
    config_file: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = (config_file, "--gpu", "cpu", "--gpu-memory", 32, "--work-dir", tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert "tokens fit" in out
    assert err.startswith("warning: int8 weights of 47.0 GB have no room in the 32 GB of cpu: the engine runs from the")
    assert " GB, " in err
    assert "to 12.9 GB" in err  # a token's own weights, when nothing of them stays
    assert "what fits: --precision awq" in err
    plan = call_json(capsys, *arguments)
    assert plan["fits"]
    assert plan["paged"].startswith("int8 weights of 47.0 GB have no room")


@pytest.mark.parametrize(("precision", "memory"), [("int8", 64), ("awq", 32)])
def test_weights_that_have_room_are_no_warning(
    config_file: Path, tmp_path: Path, capsys: Captured, precision: str, memory: int
) -> None:
    arguments = ("--precision", precision, "--gpu", "cpu", "--gpu-memory", memory, "--work-dir", tmp_path)
    assert call_json(capsys, config_file, *arguments)["paged"] is None


def test_the_table_is_for_people(demo_model: Path, tmp_path: Path, capsys: Captured) -> None:
    code, out, err = call(capsys, demo_model, "--gpu", "cpu", "--work-dir", tmp_path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("int8 weights, bfloat16 KV cache, on cpu with ")
    assert any(line.startswith("KV cache") and line.endswith("tokens fit") for line in lines)
    assert any(line.startswith("quantize ") for line in lines)


@pytest.mark.parametrize("name", ["nowhere", "model.json"])
def test_something_else_than_a_model_is_refused(tmp_path: Path, capsys: Captured, name: str) -> None:
    code, out, err = call(capsys, tmp_path / name)
    assert (code, out) == (1, "")
    assert f"{tmp_path / name} is neither a directory nor a config.json" in err
