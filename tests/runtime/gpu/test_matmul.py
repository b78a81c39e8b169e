"""One weight's product by the GPU kernels: near float64's in every encoding, for one token, few and many."""

import pytest
import torch
from gpu_products import ENCODINGS, TOLERANCE, Example, example, relative_error
from torch import Tensor

from mixtral_runtime.formats.fp8 import to_e4m3
from mixtral_runtime.kernels.gpu.matmul import GpuLinear, tiled
from mixtral_runtime.kernels.gpu.matmul_config import TileConfig
from mixtral_runtime.kernels.gpu.matmul_prepare import prepare
from mixtral_runtime.kernels.gpu.matmul_sum import sum_parts


def activations(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(5)).to(dtype)


def check(made: Example, x: Tensor) -> None:
    found = GpuLinear(made.weight)(x)
    assert found.dtype == x.dtype
    assert relative_error(found, made.multiply(x.double())) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("name", ENCODINGS)
def test_sizes_that_no_tile_divides(name: str) -> None:
    columns = 384 if name in ("awq", "gptq") else 328
    made = example(name, 1, 150, columns, torch.float16, 90)
    for tokens in (1, 19):
        check(made, activations(tokens, columns, torch.float16))


@pytest.mark.parametrize(("name", "sm"), [*((name, 90) for name in ENCODINGS), ("fp8", 80), ("gptq", 80)])
def test_sizes_that_tiles_divide(name: str, sm: int) -> None:
    """As all of Mixtral 8x7B's are: nothing is masked, and Hopper's order of columns is in use."""
    made = example(name, 1, 128, 256, torch.bfloat16, sm)
    assert made.weight.permuted == (sm == 90 and name in ("int8", "awq", "gptq"))
    for tokens in (1, 16):
        check(made, activations(tokens, 256, torch.bfloat16))


@pytest.mark.parametrize("name", ENCODINGS)
def test_columns_split_among_programs_are_summed(name: str) -> None:
    """Five steps among four pieces: the last two pieces have one step and none."""
    made = example(name, 1, 64, 640, torch.float16, 90)
    x = activations(9, 640, torch.float16)
    config = TileConfig(rows=32, tokens=16, columns=128, warps=1, stages=1, splits=4)
    parts = tiled(prepare(x, made.weight), made.weight, None, config, 1, len(x))
    assert parts.shape == (4, 9, 64)
    assert relative_error(sum_parts(parts, None, x.dtype), made.multiply(x.double())) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("name", ENCODINGS)
def test_programs_in_groups_of_token_tiles_leave_none_out(name: str) -> None:
    made = example(name, 1, 48, 128, torch.float16, 90)
    x = activations(70, 128, torch.float16)
    config = TileConfig(rows=16, tokens=16, columns=128, warps=1, stages=1, together=2)
    parts = tiled(prepare(x, made.weight), made.weight, None, config, 1, len(x))
    assert relative_error(parts[0], made.multiply(x.double())) < TOLERANCE[x.dtype]


def test_activations_become_the_same_e4m3_on_every_gpu() -> None:
    """All of float16's values from 2^-13 to 4, saturating ones among them: as PyTorch rounds them."""
    x = torch.arange(2**11 * 2, 2**14 + 2**10, dtype=torch.int16).view(torch.float16).view(2, -1)
    for sm in (80, 90):
        made = example("fp8", 1, 16, x.shape[1], torch.float16, sm)
        stored = prepare(x, made.weight)
        assert made.activation_scale is not None
        inverse = made.activation_scale.reciprocal()
        assert torch.equal(stored.float(), to_e4m3(x.float() * inverse, torch.tensor(1.0)).float())


def test_no_tokens_give_no_rows() -> None:
    made = example("int8", 1, 32, 64, torch.float16, 90)
    assert GpuLinear(made.weight)(torch.empty(0, 64, dtype=torch.float16)).shape == (0, 32)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_planted_fault_is_seen(name: str, tokens: int) -> None:
    """One bit of a byte; in 4 bits of its high nibble, which is the odd row's."""
    made = example(name, 1, 64, 128, torch.float16, 90)
    x = activations(tokens, 128, torch.float16)
    before = GpuLinear(made.weight)(x)
    made.weight.data.view(torch.uint8)[0, 21, 77] ^= 0b0100_0000
    changed = (GpuLinear(made.weight)(x) != before).any(0).nonzero().flatten().tolist()
    assert changed == [43 if name in ("awq", "gptq") else 21]
