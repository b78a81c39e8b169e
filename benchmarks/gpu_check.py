"""Whether the kernels compute the right thing on this GPU.

A small random Mixtral in every precision and with every KV cache, through the model and the engine, beside float64 on
the CPU; then each family of kernels at Mixtral-8x7B's real shapes, beside float64 on the GPU. Memory that a kernel
leaves unwritten is full of NaN meanwhile, which never passes. Exit code 0 when every check passes.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from gpu_check_kernels import check_attention, check_between, check_matrices, check_sampler
from gpu_check_model import CHECKED, VARIANTS, Check, check_model
from gpu_machine import describe_gpu
from gpu_model import MINIATURE, MIXTRAL_8X7B
from gpu_record import Record
from gpu_sizes import PRECISIONS

from mixtral_runtime.kernels.availability import gpu_kernels

PARTS = ("model", "attention", "between", "sampling", "matrices")
INTERPRETER_SLACK = 3.0  # Triton's interpreter cuts bfloat16 off where a GPU rounds, so that errors add up
TOKENS = (1, 2, 7, 8, 16, 17, 33, 64, 128, 333, 1024)
SPANS = (
    [(0, 1), (31, 1), (32, 1), (1000, 1)],
    [(4095, 1)] * 16,
    [(20_000, 1), (100, 1), (7, 1)],
    [(0, 600)],
    [(1000, 333), (5, 1), (0, 40), (64, 2)],
)
FEW_TOKENS = (1, 2, 5)
FEW_SPANS = ([(0, 1), (31, 1), (40, 1)], [(0, 20), (33, 5), (7, 1)])
ROWS, FEW_ROWS = 200, 7
PROMPTS, FEW_PROMPTS = (3, 40, 97, 200), (3, 24, 40)
OUTPUTS, FEW_OUTPUTS = 24, 4


class Checks:
    def __init__(self, record: Record, device: torch.device, miniature: bool) -> None:
        self._record = record
        self._device = device
        self._miniature = miniature
        self._slack = INTERPRETER_SLACK if gpu_kernels() == "interpret" else 1.0

    def run(self, parts: Iterable[str]) -> None:
        if "model" in parts:
            prompts = (FEW_PROMPTS, FEW_OUTPUTS) if self._miniature else (PROMPTS, OUTPUTS)
            small = MINIATURE if self._miniature else CHECKED
            for precision, kv_cache in VARIANTS:
                checks = partial(check_model, small, precision, kv_cache, self._device, *prompts)
                self._part(f"model: {precision}, {kv_cache} KV", checks)
        shape = MINIATURE if self._miniature else MIXTRAL_8X7B
        tokens, spans = (FEW_TOKENS, FEW_SPANS) if self._miniature else (TOKENS, SPANS)
        if "attention" in parts:
            for kv_cache in ("16bit", "fp8"):
                checks = partial(check_attention, shape, kv_cache, self._device, spans)
                self._part(f"attention: {kv_cache} KV", checks)
        if "between" in parts:
            self._part("norms and router", partial(check_between, shape, self._device, tokens))
        if "sampling" in parts:
            rows = FEW_ROWS if self._miniature else ROWS
            self._part("sampling", partial(check_sampler, shape, self._device, rows))
        if "matrices" in parts:
            for precision in PRECISIONS:
                self._part(f"matrices: {precision}", partial(check_matrices, shape, precision, self._device, tokens))

    def _part(self, name: str, checks: Callable[[], Iterable[Check]]) -> None:
        with self._record.part(name):
            self._record.need(5)
            for found in checks():
                check = replace(found, limit=found.limit * self._slack)
                self._record.add("checks", {**asdict(check), "passed": check.passed})
                if not check.passed:
                    self._record.say(f"FAIL {check.name}: {check.measured:.3g}, at most {check.limit:g}")
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def table(record: Record) -> str:
    """A line for each check, then what failed otherwise or was left out."""
    checks = record.data.get("checks", [])
    width = max((len(one["name"]) for one in checks), default=0)
    lines = [
        f"{'PASS' if one['passed'] else 'FAIL'}  {one['name']:<{width}}  {one['measured']:>9.4f}  <= {one['limit']:g}"
        for one in checks
    ]
    lines += [f"FAIL  {part['name']}: {part['error']}" for part in record.data["parts"] if part["error"]]
    lines += [f"LEFT OUT  {one['what']}: {one['reason']}" for one in record.data.get("left_out", [])]
    passed = sum(one["passed"] for one in checks)
    return "\n".join([*lines, f"{passed} of {len(checks)} checks passed"])


def succeeded(record: Record) -> bool:
    checks = record.data.get("checks", [])
    return bool(checks) and all(one["passed"] for one in checks) and not record.failed


def poison_empty_memory() -> None:
    """torch.empty gives NaN from now on."""
    gpu_kernels()  # says whether kernels are interpreted before the next line imports Triton
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=150.0, help="What is not begun by then is left out.")
    parser.add_argument("--results", type=Path, help="Folder for gpu-check.json.")
    parser.add_argument("--miniature", action="store_true", help="Tiny shapes on the CPU.")
    parser.add_argument("--json", action="store_true", help="The result as JSON instead of the table.")
    asked = parser.parse_args(arguments)
    if not asked.miniature and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA GPU here; --miniature runs on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if asked.miniature else "cuda")
    path = asked.results / "gpu-check.json" if asked.results else None
    head = {"machine": describe_gpu(device), "settings": {"miniature": asked.miniature}}
    record = Record(path, head, asked.seconds)
    Checks(record, device, asked.miniature).run(asked.part)
    record.finish()
    print(json.dumps(record.data) if asked.json else table(record))
    return 0 if succeeded(record) else 1


if __name__ == "__main__":
    poison_empty_memory()
    sys.exit(main())
