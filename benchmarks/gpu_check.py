"""Whether the kernels compute the right thing on this GPU.

A small random Mixtral in every precision and with every KV cache, through the model and the engine, beside float64 on
the CPU; then each family of kernels at Mixtral-8x7B's real shapes, beside float64 on the GPU. Memory that a kernel
leaves unwritten is full of NaN meanwhile, which never passes. Exit code 0 when every check passes.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
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

PARTS = ("model", "matrices", "attention", "between", "sampling")
JOBS = 4
GRACE_S = 30.0  # for a check that was begun in time
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


Checks = Callable[[], Iterable[Check]]


def all_checks(device: torch.device, *, miniature: bool) -> dict[str, dict[str, Checks]]:
    """By part, then by name, the most important first."""
    shape, small = (MINIATURE, MINIATURE) if miniature else (MIXTRAL_8X7B, CHECKED)
    tokens, spans = (FEW_TOKENS, FEW_SPANS) if miniature else (TOKENS, SPANS)
    prompts = (FEW_PROMPTS, FEW_OUTPUTS) if miniature else (PROMPTS, OUTPUTS)
    rows = FEW_ROWS if miniature else ROWS
    return {
        "model": {
            f"model: {precision}, {kv_cache} KV": partial(check_model, small, precision, kv_cache, device, *prompts)
            for precision, kv_cache in VARIANTS
        },
        "matrices": {
            f"matrices: {precision}": partial(check_matrices, shape, precision, device, tokens)
            for precision in PRECISIONS
        },
        "attention": {
            f"attention: {kv_cache} KV": partial(check_attention, shape, kv_cache, device, spans)
            for kv_cache in ("16bit", "fp8")
        },
        "between": {"norms and router": partial(check_between, shape, device, tokens)},
        "sampling": {"sampling": partial(check_sampler, shape, device, rows)},
    }


def run_here(record: Record, checks: Mapping[str, Checks]) -> None:
    """One after another. Limits are wider in Triton's interpreter."""
    slack = INTERPRETER_SLACK if gpu_kernels() == "interpret" else 1.0
    for name, check in checks.items():
        with record.part(name):
            record.need(5)
            for found in check():
                one = replace(found, limit=found.limit * slack)
                record.add("checks", {**asdict(one), "passed": one.passed})
                if not one.passed:
                    record.say(f"FAIL {one.name}: {one.measured:.3g}, at most {one.limit:g}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_in_processes(record: Record, names: Iterable[str], jobs: int, options: list[str]) -> None:
    """Each in a process of its own, `jobs` at once: kernels are compiled side by side, and one that writes where it
    must not takes no other along. options: of every process."""

    def run(name: str) -> tuple[str, subprocess.CompletedProcess[str]]:
        seconds = str(max(1.0, record.left_s))
        command = [sys.executable, __file__, "--only", name, "--json", "--seconds", seconds, *options]
        try:
            return name, subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=record.left_s + GRACE_S)
        except subprocess.TimeoutExpired:
            return name, subprocess.CompletedProcess(command, returncode=-1, stdout="")

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(run, name) for name in names]):
            name, done = future.result()
            try:
                found = json.loads(done.stdout)
            except ValueError:
                error = f"the process ended with {done.returncode}"
                found = {"parts": [{"name": name, "seconds": None, "error": error}]}
            for kind in ("checks", "parts", "left_out"):
                record.data.setdefault(kind, []).extend(found.get(kind, []))
            record.save()


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
    failed = sum(bool(part["error"]) for part in record.data["parts"])
    ended = f", {failed} parts ended in an error" if failed else ""
    return "\n".join([*lines, f"{passed} of {len(checks)} checks passed{ended}"])


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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="Of these parts only the checks of these names.")
    parser.add_argument("--jobs", type=int, help="Checks at once, each in a process; 0: here. 4 on a GPU, else 0.")
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
    by_part = all_checks(device, miniature=asked.miniature)
    checks = {name: check for part in PARTS if part in asked.part for name, check in by_part[part].items()}
    if asked.only:
        checks = {name: checks[name] for name in asked.only}
    jobs = asked.jobs if asked.jobs is not None else (0 if asked.miniature or asked.only else JOBS)
    if jobs:
        run_in_processes(record, checks, jobs, ["--miniature"] if asked.miniature else [])
    else:
        run_here(record, checks)
    record.finish()
    print(json.dumps(record.data) if asked.json else table(record))
    return 0 if succeeded(record) else 1


if __name__ == "__main__":
    poison_empty_memory()
    sys.exit(main())
