"""The golden vectors: from our own code, and from a stand-in for the library's operation that is right or wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from container_check import golden
from container_check.check import Failed, NotAvailable, Status
from container_check.golden import GOLDEN, golden_input, judge, library, our_digests, ours
from container_check.machine import Gpu, look_around
from container_check.workplace import Workplace

A100, H100 = Gpu("NVIDIA A100-SXM4-80GB", 81920, "8.0"), Gpu("NVIDIA H100 80GB HBM3", 81559, "9.0")

# Follows NVIDIA's C++ by its index arithmetic, element by element, and shares nothing with this project. It registers
# an operation of the library's name in torch, and is itself no library.
STAND_IN = """
import numpy as np
import torch

ROWS = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]


def quantize(weight, arch):
    w = weight.float().numpy()
    batch = w if w.ndim == 3 else w[None]
    scales = np.abs(batch).max(axis=1) * np.float32(1 / 128)
    ratio = batch / np.where(scales == 0, np.float32(1), scales)[:, None]
    q = np.clip(np.sign(ratio) * np.floor(np.abs(ratio).astype(np.float64) + 0.5), -128, 127).astype(np.int8)
    out = np.zeros(q.shape, np.uint8)
    interleave = arch != 90 or w.ndim == 3
    for e, matrix in enumerate(q):
        flat = out[e].reshape(-1)
        size = matrix.shape[0]
        for k in range(size):
            kk = 16 * (k // 16) + ROWS.index(k % 16)
            for n in range(matrix.shape[1]):
                if interleave:
                    place = n // 2 * 2 * size + kk // 64 * 128 + n % 2 * 64 + 4 * (kk % 64 // 4) + [0, 2, 1, 3][kk % 4]
                else:
                    place = n * size + 4 * (kk // 4) + [0, 2, 1, 3][kk % 4]
                flat[place] = (int(matrix[k, n]) + 128) % 256
    shape = tuple(weight.shape)
    tensors = [torch.from_numpy(a.reshape(shape)) for a in (q, out.view(np.int8))]
    return [*tensors, torch.from_numpy(scales.reshape(shape[:-2] + shape[-1:])).to(weight.dtype)]


FRAGMENT = torch.library.Library("trtllm", "DEF")
NAME = "symmetric_quantize_last_axis_of_batched_matrix"
FRAGMENT.define(f"{NAME}(Tensor weight, ScalarType quant_type) -> Tensor[]")
FRAGMENT.define(f"_{NAME}(Tensor weight, ScalarType quant_type) -> Tensor[]")
FRAGMENT.impl(NAME, lambda weight, quant_type: quantize(weight, ARCH)[1:], "CPU")
FRAGMENT.impl(f"_{NAME}", lambda weight, quant_type: quantize(weight, ARCH), "CPU")
"""


def workplace(tmp_path: Path, demo_model: Path, gpu: Gpu | None, source: str = "") -> Workplace:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in.py").write_text(source)
    machine = replace(look_around(), gpus=(gpu,) if gpu else ())
    folder = tmp_path / "work"
    folder.mkdir()
    return Workplace(folder, demo_model, machine, library="stand_in", environment={"PYTHONPATH": str(modules)})


def processed_as(layout: str) -> dict[str, dict[str, str]]:
    """What the program would write for a library that gives this layout."""
    return {f"{dtype} {experts}": {**found, "processed": found[layout]} for (dtype, experts), found in GOLDEN.items()}


def test_our_own_half(tmp_path: Path, demo_model: Path) -> None:
    outcome = ours(workplace(tmp_path, demo_model, None))
    assert (outcome.status, outcome.details) == (Status.PASS, ("20 digests over 4 inputs",))


def test_our_own_half_can_fail(tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "quantize_rows", lambda rows: (rows.to(torch.int8), rows[..., 0]))
    with pytest.raises(Failed) as failure:
        ours(workplace(tmp_path, demo_model, None))
    assert any(line.startswith("float16, 1 experts: values is ") for line in failure.value.args)


@pytest.mark.parametrize(("gpu", "arch", "layout"), [(A100, 80, "sm80"), (H100, 90, "sm90")])
def test_an_operation_that_follows_nvidias_source_passes(
    tmp_path: Path, demo_model: Path, gpu: Gpu, arch: int, layout: str
) -> None:
    outcome = library(workplace(tmp_path, demo_model, gpu, f"ARCH = {arch}\n{STAND_IN}"))
    assert outcome.details == (f"values, scales and the layout {layout} are the recorded ones for 4 inputs",)


def test_another_layout_is_named() -> None:
    """Such as when the library does not do on SM90 what its source says."""
    with pytest.raises(Failed) as failure:
        judge(processed_as("sm80"), "sm90")
    assert failure.value.args == (
        "float16, a plain matrix: the library's result has the layout sm80, we would write sm90",
        "bfloat16, a plain matrix: the library's result has the layout sm80, we would write sm90",
    )


def test_other_rounding_is_told_from_another_layout() -> None:
    found = processed_as("sm80")
    assert judge(found, "sm80").status == Status.PASS
    found["float16 1"] |= {"values": "0" * 32, "processed": "1" * 32}
    with pytest.raises(Failed) as failure:
        judge(found, "sm80")
    assert failure.value.args == (
        "float16, a plain matrix: the values are other ones, so the rounding differs",
        "float16, a plain matrix: the library's result has a layout that we do not know, we would write sm80",
    )
    assert failure.value.advice is not None


def test_an_operation_that_is_missing_says_so(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(Failed) as failure:
        library(workplace(tmp_path, demo_model, A100, ""))
    assert failure.value.args[0] == "the operation ended with status 1, its last lines:"
    assert any("symmetric_quantize_last_axis_of_batched_matrix" in line for line in failure.value.args)


def test_without_a_gpu_nothing_is_known(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(NotAvailable, match="there is no GPU"):
        library(workplace(tmp_path, demo_model, None))


def test_the_vectors_are_those_that_the_quantiser_is_tested_with() -> None:
    """Digests that our code gives are the recorded ones, input included, for both dtypes."""
    for (dtype, experts), digests in GOLDEN.items():
        assert our_digests(golden_input(dtype, experts)) == digests
