"""The kernels of the sampler compile for real GPUs at a vocabulary of 32,000, and keep all in registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[2] / "support"
PROGRAM = """
import sys

import compile_only
import torch

from mixtral_runtime.engine import Request
from mixtral_runtime.pytorch.gpu_sampler import GpuSampler
from mixtral_runtime.pytorch.sequence import Sequence

compile_only.use(int(sys.argv[1]), sass=True)
META = torch.device("meta")
sampler = GpuSampler(64, 32000, META)  # a tensor without values: whoever asks for one raises
sampler.warm_up()
sequences = [Sequence(number, Request([1], 9), None) for number in range(64)]
sampler.choose(torch.empty(64, 32000, dtype=torch.bfloat16, device=META), sequences)
for one in compile_only.compiled:
    assert one.stack == 0, (one.name, one.stack)
    assert one.shared <= 32768, (one.name, one.shared)
    if one.name in ("_scan", "weigh"):
        assert "LDG.E.128" in one.sass, one.name
    if one.name == "_pick" and one.registers > 64:
        assert one.registers <= 128, one.registers  # of 512 threads
        assert one.sass.count("LDG.E.128") >= 6, "a row is not read by wide loads"
print(*sorted({one.name for one in compile_only.compiled}))
"""


@pytest.mark.parametrize("sm", [80, 90])
def test_sampling_compiles_without_spills_and_with_wide_loads(sm: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SUPPORT)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sm)], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["_append", "_ban_completed", "_pick", "_scan", "weigh"]
