"""The kernels of the layer ops compile for real GPUs at Mixtral-8x7B's shapes, and keep all in registers."""

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

from mixtral_runtime.kernels.gpu import layer_ops

compile_only.use(int(sys.argv[1]), sass=True)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


x, weight = empty(64, 4096), empty(4096, dtype=torch.float32)
layer_ops.norm(x, weight, 1e-5)
layer_ops.embed_norm(empty(64, dtype=torch.int64), empty(32000, 4096), weight, 1e-5, torch.bfloat16)
layer_ops.add_norm(x, x, weight, 1e-5)
layer_ops.route(x, empty(8, 4096), 2)
for router in (empty(8, 4096), empty(8, 4096, dtype=torch.float32)):
    layer_ops.add_norm_route(x, x, weight, router, 1e-5, 2)
for one in compile_only.compiled:
    assert one.stack == 0, one.arguments
    assert one.registers <= 128, one.arguments  # of 512 threads at most
    assert one.shared <= 16384, one.arguments
    assert one.sass.count("LDG.E.128") >= 3, one.arguments
    assert "LDG.E.U16" not in one.sass, one.arguments
print(len(compile_only.compiled))
"""


@pytest.mark.parametrize("sm", [80, 90])
def test_layer_ops_compile_without_spills_and_with_wide_loads(sm: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SUPPORT)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sm)], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["6"]
