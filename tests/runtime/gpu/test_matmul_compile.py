"""The kernels of matrix products at Mixtral 8x7B's sizes, compiled for an A100 and an H100 without either: nothing
spilled, 16-byte reads, and the matrix units that were meant."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from compile_only import SHARED_MEMORY

# Run by the test in a process of its own: `python -c PROGRAM SM`.
PROGRAM = """
import json, re, sys
import compile_only, torch
from mixtral_runtime.kernels.gpu.experts import GpuExperts
from mixtral_runtime.kernels.gpu.weights import dense_weight, fp8_weight, int4_weight, int8_weight

sm = int(sys.argv[1])
compile_only.use(sm, sass=True)
bf16 = torch.bfloat16

def empty(*shape, dtype=bf16):
    return torch.empty(shape, dtype=dtype, device="meta")

def weight(name, experts, out, columns):
    shape, groups = (experts, out, columns), (experts, out, columns // 128)
    if name == "16bit":
        return dense_weight(empty(*shape), sm)
    if name == "int8":
        return int8_weight(empty(*shape, dtype=torch.int8), empty(experts, out), bf16, sm)
    if name == "fp8":
        scales = empty(experts, 1, dtype=torch.float32), empty(1, dtype=torch.float32)
        return fp8_weight(empty(*shape, dtype=torch.float8_e4m3fn), *scales, dtype=bf16, sm=sm)
    stored = empty(experts, out // 2, columns, dtype=torch.int8)
    if name == "awq":
        return int4_weight(stored, empty(*groups), bf16, None, empty(experts, columns), sm)
    return int4_weight(stored, empty(*groups), bf16, empty(*groups, dtype=torch.int8), None, sm)

def experts(name, tokens):
    chosen = empty(tokens, 2, dtype=torch.int64), empty(tokens, 2, dtype=torch.float32)
    call = GpuExperts(weight(name, 8, 28672, 4096), weight(name, 8, 4096, 14336))
    call(empty(tokens, 4096), *chosen)

found = []
for name, tokens in [("int8", 1), ("int8", 16), ("int8", 2048), ("fp8", 512), ("awq", 1), ("gptq", 512)]:
    before = len(compile_only.compiled)
    experts(name, tokens)
    for one in compile_only.compiled[before:]:
        names = re.findall(r"^ +/[*][0-9a-f]+[*]/ +(?:@!?U?P[0-9T]+ )?([A-Z][A-Z0-9.]+)", one.sass, re.M)
        found.append({"case": name, "tokens": tokens, "kernel": one.name, "stack": one.stack, "shared": one.shared,
                      "registers": one.registers, "instructions": sorted(set(names))})
json.dump(found, sys.stdout)
"""
PRODUCTS = ("tiled_product", "one_token_product")


@dataclass(frozen=True)
class Kernel:
    """registers: of a thread; stack: bytes of a thread in memory. instructions: names of the machine's."""

    case: str
    tokens: int
    kernel: str
    stack: int
    shared: int
    registers: int
    instructions: list[str]

    def uses(self, name: str) -> bool:
        return any(found.startswith(name) for found in self.instructions)


@pytest.fixture(scope="module", params=[80, 90])
def sm(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def kernels(sm: int) -> list[Kernel]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sm)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [Kernel(**one) for one in json.loads(ran.stdout)]


def test_nothing_is_spilled_and_shared_memory_suffices(sm: int, kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[sm] // (2 if kernel.tokens <= 16 else 1), kernel


def test_weights_are_read_16_bytes_at_a_time(kernels: list[Kernel]) -> None:
    products = [kernel for kernel in kernels if kernel.kernel in PRODUCTS]
    assert {kernel.kernel for kernel in products} == set(PRODUCTS)
    for kernel in products:
        wide = "LDG.E.128" if kernel.kernel == "one_token_product" else "LDGSTS.E.BYPASS.128"
        assert kernel.uses(wide), kernel


def test_tiles_go_to_the_matrix_units_that_were_meant(sm: int, kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if kernel.kernel == "tiled_product":
            meant = "HMMA" if sm < 90 else "QGMMA" if kernel.case == "fp8" else "HGMMA"
            assert kernel.uses(meant), kernel
            if sm >= 90:
                assert not kernel.uses("HMMA"), kernel


def test_integers_are_not_converted_by_the_slow_unit(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if kernel.kernel in PRODUCTS and kernel.case in ("int8", "awq"):
            assert not kernel.uses("I2F.S8"), kernel


def test_converted_weights_stay_in_registers(sm: int, kernels: list[Kernel]) -> None:
    """On their way to the matrix units: other tile sizes can make the compiler send them through shared memory, 2 bytes
    at a time."""
    for kernel in kernels:
        if kernel.kernel == "tiled_product" and sm >= 90:
            assert not kernel.uses("LDSM"), kernel
            assert not kernel.uses("LDS.U16") or kernel.case == "gptq", kernel  # its factors are 16-bit words
