"""What `make gpu-check` compares, run in miniature on the CPU: sound code passes, planted faults do not."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu_check_model import VARIANTS, check_model, median_error
from gpu_model import MINIATURE, RandomCheckpoint, config_of, random_model
from gpu_reference import Reference

from mixtral_runtime.pytorch.experts import Experts
from mixtral_runtime.pytorch.layer_ops import KernelOps, PlainOps
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.rotary import Rotary

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_sound_code_passes_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--miniature", "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert found["complete"]
    assert all(one["passed"] for one in found["checks"])
    assert len(found["checks"]) == 45
    printed = capsys.readouterr().out
    assert "45 of 45 checks passed" in printed
    assert "FAIL" not in printed


@pytest.mark.parametrize("planted", ["angles", "a lost expert", "not a number"])
def test_a_fault_fails_and_the_other_checks_go_on(
    planted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if planted == "angles":
        real: Any = Rotary.__init__
        monkeypatch.setattr(Rotary, "__init__", lambda self, size, base, *rest: real(self, size, base / 10, *rest))
    elif planted == "a lost expert":
        call: Any = Experts.__call__
        lost = torch.tensor([1.0, 0.0])
        monkeypatch.setattr(Experts, "__call__", lambda self, x, chosen, shares: call(self, x, chosen, shares * lost))
    else:
        for ops in (PlainOps, KernelOps):
            monkeypatch.setattr(ops, "norm", lambda self, x, weight: torch.full_like(x, torch.nan))
    assert gpu_check.main(["--miniature", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    failed = {one["name"] for one in found["checks"] if not one["passed"]} | {
        part["name"] for part in found["parts"] if part["error"]
    }
    expected = {
        "angles": "attention, 16bit KV: 3 sequences, up to 41 tokens, 1 new",
        "a lost expert": "int8: experts, 1 to 5 tokens",
        "not a number": "norm, 1 to 5 tokens",
    }
    assert expected[planted] in failed
    assert any("logits" in name for name in failed)
    assert "sampling: tokens other than the CPU's, 7 rows, share" not in failed


@pytest.mark.parametrize(("precision", "kv_cache"), VARIANTS)
def test_the_reference_is_the_model_up_to_rounding(precision: str, kv_cache: str) -> None:
    """With float32 activations the difference is a hundredth of what 16 bits may differ by."""
    checkpoint: Any = RandomCheckpoint(config_of(MINIATURE, precision, kv_cache), CPU)
    token_ids = [3, 150, 77, 12, 300, 3, 9]
    exact = MixtralModel.load(checkpoint, CPU, torch.float32).forward_logits(token_ids)
    error = median_error(exact, Reference(checkpoint).logits(token_ids))
    assert error < (5e-4 if "fp8" not in (precision, kv_cache) else 0.03)


def test_random_weights_are_the_same_for_a_seed_and_look_like_a_model() -> None:
    config = config_of(MINIATURE, "awq")
    first, again, other = (random_model(config, CPU, seed=seed).forward_logits([5, 6, 7]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 1 < float(first.std()) < 10


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton (the language) is not installed")
def test_the_gpu_kernels_pass_in_triton_s_interpreter() -> None:
    """In a process of their own, because the variable is read when Triton is imported. With all parts it takes minutes:
    `MIXTRAL_GPU_KERNELS=interpret python benchmarks/gpu_check.py --miniature --seconds 900`."""
    environment = os.environ | {"MIXTRAL_GPU_KERNELS": "interpret", "PYTHONPATH": f"{ROOT}/benchmarks:{ROOT}/runtime"}
    command = [sys.executable, "benchmarks/gpu_check.py", "--miniature", "--part", "attention", "between", "sampling"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_checks_can_run_in_processes_of_their_own_so_that_one_that_dies_takes_no_other_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["--part", "between", "sampling"]
    assert gpu_check.main(["--miniature", *parts, "--jobs", "2", "--results", str(tmp_path)]) == 0
    assert "5 of 5 checks passed" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert {part["name"] for part in found["parts"]} == {"norms and router", "sampling"}


def test_a_process_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "no such folder"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert gpu_check.main(["--miniature", "--part", "sampling", "--jobs", "2"]) == 1
    assert "FAIL  sampling: the process ended with 1" in capsys.readouterr().out


def test_checks_without_time_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--miniature", "--seconds", "1"]) == 1
    assert "LEFT OUT  model: 16bit, 16bit KV: " in capsys.readouterr().out


def test_a_check_yields_names_of_the_variant() -> None:
    found = list(check_model(MINIATURE, "int8", "fp8", CPU, (3, 9), 2))
    assert [one.name.split(":")[0] for one in found] == ["int8, fp8 KV"] * 4
