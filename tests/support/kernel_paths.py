"""The CPU kernels' paths in one process: each test runs on those that the machine has and skips the others."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mixtral_runtime.kernels import CpuPath, cpu_path
from mixtral_runtime.kernels.dispatch import PATHS

KERNEL_PATHS: tuple[CpuPath, ...] = tuple(path for path in PATHS if path != "none")


@contextmanager
def on_path(path: CpuPath) -> Iterator[None]:
    """Kernels take `path` inside, whatever was chosen for the process."""
    chosen = cpu_path()
    if chosen == "none":
        pytest.skip("the CPU kernels are switched off, or cannot be compiled here")
    best = PATHS[torch.ops.mixtral_cpu.best_path()]
    if PATHS.index(path) > PATHS.index(best):
        pytest.skip(f"this CPU has {best} at most")
    torch.ops.mixtral_cpu.set_path(PATHS.index(path))
    try:
        yield
    finally:
        torch.ops.mixtral_cpu.set_path(PATHS.index(chosen))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
