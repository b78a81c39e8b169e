"""Which of the kernels' paths this process takes: chosen once, by the CPU's flags or by an environment variable."""

import functools
import os
from typing import Literal, cast, get_args

import torch

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.kernels.native import load_kernels

VARIABLE = "MIXTRAL_CPU_KERNELS"
CpuPath = Literal["none", "avx2", "avx512", "amx"]
PATHS: tuple[CpuPath, ...] = get_args(CpuPath)  # in the order of `mixtral::Path` in cpu/path.h


@functools.cache
def cpu_path() -> CpuPath:
    """ "none" is plain PyTorch: asked for by MIXTRAL_CPU_KERNELS=none, or all there is without a compiler or on a CPU
    without AVX2. Compiles the kernels on the first call of the first process.

    Raises InvalidArgument when the variable names a path that does not exist or that this machine cannot take.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in ("auto", *PATHS):
        raise InvalidArgument(f"{VARIABLE} is {asked}, there are auto, {', '.join(PATHS)}")
    if asked == "none":
        return "none"
    problem = load_kernels()
    best = 0 if problem else torch.ops.mixtral_cpu.best_path()
    chosen = best if asked == "auto" else PATHS.index(cast(CpuPath, asked))
    if chosen > best:
        raise InvalidArgument(f"{VARIABLE} is {asked}, {problem or f'this CPU has {PATHS[best]} at most'}")
    if not problem:
        torch.ops.mixtral_cpu.set_path(chosen)
    return PATHS[chosen]
