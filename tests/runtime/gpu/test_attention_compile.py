"""The attention kernels as the compiler makes them for real GPUs, at Mixtral-8x7B's shapes."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys
import compile_only
compile_only.use(int(sys.argv[1]), sass=True)
import torch
from mixtral_runtime.kernels.gpu.attention import GpuAttention
from mixtral_runtime.pytorch.batch import Batch
from mixtral_runtime.pytorch.rotary import Rotary

def empty(*shape, dtype=torch.int64):
    return torch.empty(shape, dtype=dtype, device="meta")

def compiled(stored, scales):
    compile_only.compiled.clear()
    attention = GpuAttention(32, 8, 128, Rotary(128, 1e6, 32768, torch.device("meta")), stored)
    storage, qkv = empty(32, 2, 16384, 32, 8, 128, dtype=stored), empty(512, 48 * 128, dtype=torch.bfloat16)
    spans = empty(2, 4), empty(512, dtype=torch.int32)
    attention.attend(3, qkv, storage, scales, Batch(empty(512), empty(512), empty(512), *spans, 511, 8192))
    return {
        one.name: {"shared": one.shared, "stack": one.stack, "registers": one.registers}
        | {kind: one.sass.count(kind) for kind in (
            "LDGSTS.E.BYPASS.128", "LDGSTS", "LDL", "STL", "HGMMA", "HMMA", "F2FP.F16.E4M3")}
        for one in compile_only.compiled
    }

found = {"bf16": compiled(torch.bfloat16, None), "fp8": compiled(torch.uint8, empty(32, dtype=torch.float32))}
print(json.dumps(found))
"""
SHARED_OF_A_MULTIPROCESSOR = {80: 167_936, 90: 233_472}  # bytes, of which each program costs 1 KiB more
RESIDENT = {80: 2, 90: 3}


@pytest.fixture(scope="module", params=[80, 90], ids="sm{}".format)
def kernels(request: pytest.FixtureRequest) -> tuple[int, dict[str, dict[str, Any]]]:
    """Of one GPU, by the cache's dtype and the kernel's name."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(request.param)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)


@pytest.fixture(params=["bf16", "fp8"])
def compiled(
    request: pytest.FixtureRequest, kernels: tuple[int, dict[str, dict[str, Any]]]
) -> tuple[int, str, dict[str, Any]]:
    """SM, dtype of the cache, and what is known of each kernel."""
    return kernels[0], request.param, kernels[1][request.param]


def test_nothing_is_kept_on_the_stack(compiled: tuple[int, str, dict[str, Any]]) -> None:
    _, _, kernels = compiled
    assert set(kernels) == {"write_kv_kernel", "prefill_kernel", "decode_kernel"}
    for kernel in kernels.values():
        assert kernel["stack"] == kernel["LDL"] == kernel["STL"] == 0


def test_the_cache_is_read_16_bytes_at_a_time_past_the_registers(compiled: tuple[int, str, dict[str, Any]]) -> None:
    _, _, kernels = compiled
    for name in ("prefill_kernel", "decode_kernel"):
        assert kernels[name]["LDGSTS"] == kernels[name]["LDGSTS.E.BYPASS.128"] > 0


def test_the_matrix_units_are_used(compiled: tuple[int, str, dict[str, Any]]) -> None:
    sm, cache, kernels = compiled
    assert kernels["decode_kernel"]["HMMA"] > 0
    assert kernels["prefill_kernel"]["HGMMA" if sm == 90 else "HMMA"] > 0
    assert (kernels["decode_kernel"]["F2FP.F16.E4M3"] > 0) == (sm == 90 and cache == "fp8")


def test_as_many_decode_programs_fit_as_are_counted_on(compiled: tuple[int, str, dict[str, Any]]) -> None:
    sm, _, kernels = compiled
    decode = kernels["decode_kernel"]
    assert RESIDENT[sm] * (decode["shared"] + 1024) <= SHARED_OF_A_MULTIPROCESSOR[sm]
    assert RESIDENT[sm] * 128 * decode["registers"] <= 65536
