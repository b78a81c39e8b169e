"""Compiles GPU kernels without a GPU: a driver that says which one it is and launches nothing.

In a process of its own, without TRITON_INTERPRET: `compile_only.use(90)`, then call the kernels' own host code on
tensors of `device="meta"`; every kernel is compiled with the arguments and options of a real launch, and
`compile_only.compiled` has what the compiler says of it.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes a block may have: CUDA programming guide, compute capabilities


@dataclass(frozen=True)
class Compiled:
    """registers: of a thread; stack: its bytes of local memory, what did not fit in registers among them."""

    name: str
    arguments: str
    shared: int
    registers: int
    stack: int
    sass: str


compiled: list[Compiled] = []


class _Utils:
    """What the compiler asks of a driver after compiling, when a kernel would be loaded."""

    def __init__(self, sm: int) -> None:
        self._sm = sm

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self._sm], "multiprocessor_count": 132, "warpSize": 32}


class CompileOnlyDriver:
    def __init__(self, sm: int) -> None:
        self._target = GPUTarget("cuda", sm, 32)
        self.utils = _Utils(sm)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> None:
        return None


def use(sm: int, *, sass: bool = False) -> None:
    """From now on kernels are compiled for this GPU and not run. sass: the machine code is kept too."""
    triton.runtime.driver.set_active(CompileOnlyDriver(sm))
    original = triton.JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(_describe(kernel, sass))
        return kernel

    triton.JITFunction.run = run


def _describe(kernel: Any, sass: bool) -> Compiled:
    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
        code = ""
        if sass:
            code = subprocess.run(
                [tools / "cuobjdump", "--dump-sass", file.name], check=True, capture_output=True, text=True
            ).stdout
    found = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK")}  # type: ignore[index]
    source = kernel.src
    arguments = f"{source.signature} {source.constants}"
    return Compiled(source.name, arguments, kernel.metadata.shared, found["REG"], found["STACK"], code)
