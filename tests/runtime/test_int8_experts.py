"""The fused mixture of int8 experts: near the exact one, a token by itself, and no expert read that was not chosen."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import KERNEL_PATHS, on_path, threads
from torch import Tensor

from mixtral_runtime.formats.int8 import Int8, Int8Experts, Int8Linear
from mixtral_runtime.pytorch.experts import Experts, route

# Root mean square error over that of the result: its own rounding, for float32 that of the sums.
TOLERANCE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4, torch.float32: 2e-6}


class Mixture:
    """Random experts. fc: int8 [experts, 2 * intermediate, hidden], proj: int8 [experts, hidden, intermediate]."""

    def __init__(self, experts: int, hidden: int, intermediate: int, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)

        def integers(*shape: int) -> Tensor:
            return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)

        def scales(rows: int, columns: int) -> Tensor:
            spread: Tensor = torch.rand(experts, rows, generator=generator) + 0.5
            return spread / (40 * math.sqrt(columns))

        self.fc, self.fc_scales = integers(experts, 2 * intermediate, hidden), scales(2 * intermediate, hidden)
        self.proj, self.proj_scales = integers(experts, hidden, intermediate), scales(hidden, intermediate)

    def fused(self) -> Int8Experts:
        return Int8Experts(self.fc, self.fc_scales, self.proj, self.proj_scales)

    def exact(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """In float64."""
        total = torch.zeros(x.shape, dtype=torch.float64)
        for token, slot in torch.cartesian_prod(torch.arange(len(x)), torch.arange(experts.shape[1])).tolist():
            e = experts[token, slot]
            up, gate = ((self.fc[e].double() @ x[token].double()) * self.fc_scales[e].double()).chunk(2)
            down = (self.proj[e].double() @ (F.silu(gate) * up)) * self.proj_scales[e].double()
            total[token] += down * weights[token, slot].double()
        return total


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


def tokens(count: int, hidden: int, experts: int, top_k: int, dtype: torch.dtype, seed: int = 2) -> tuple[Tensor, ...]:
    """x, and the experts and weights of a random router."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, hidden, generator=generator).to(dtype)
    return x, *route(torch.randn(count, experts, generator=generator), top_k)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 40),
    experts=st.integers(1, 5),
    hidden=st.integers(1, 140),
    intermediate=st.integers(1, 140),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_mixtures_of_any_shape_are_near_the_exact_one(
    path: str,
    count: int,
    experts: int,
    hidden: int,
    intermediate: int,
    dtype: torch.dtype,
    seed: int,
    data: st.DataObject,
) -> None:
    mixture = Mixture(experts, hidden, intermediate, seed)
    routed = tokens(count, hidden, experts, data.draw(st.integers(1, experts)), dtype, seed)
    found = mixture.fused()(*routed)
    assert found.dtype == dtype
    # A handful of values can all have been rounded by the largest error that there is.
    assert relative_error(found, mixture.exact(*routed)) < 2 * TOLERANCE[dtype]


@pytest.fixture(scope="module")
def expert_of_8x7b() -> tuple[Int8Experts, tuple[Tensor, ...], Tensor]:
    """The expert, two routed tokens that every dtype holds exactly, and the exact result."""
    mixture = Mixture(1, 4096, 14336)
    routed = tokens(2, 4096, 1, 1, torch.bfloat16)
    return mixture.fused(), routed, mixture.exact(*routed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_expert_of_mixtral_8x7b(
    path: str, dtype: torch.dtype, expert_of_8x7b: tuple[Int8Experts, tuple[Tensor, ...], Tensor]
) -> None:
    fused, (x, experts, weights), exact = expert_of_8x7b
    found = fused(x.to(dtype), experts, weights)
    assert relative_error(found, exact) < TOLERANCE[dtype]
    # The same tokens among so many that they are multiplied in tiles.
    many = torch.cat([x, torch.ones(60, 4096, dtype=torch.bfloat16)]).to(dtype)
    assert torch.equal(fused(many, experts[:1].expand(62, 1), weights[:1].expand(62, 1))[:2], found)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_token_has_the_same_bits_among_any_others_and_on_any_path(path: str, dtype: torch.dtype) -> None:
    mixture = Mixture(6, 200, 72).fused()
    x, experts, weights = tokens(150, 200, 6, 2, dtype)
    with on_path("avx2"):
        alone = torch.cat([mixture(x[t : t + 1], experts[t : t + 1], weights[t : t + 1]) for t in range(150)])
    for count in (1, 2, 5, 12, 40, 150):
        assert torch.equal(mixture(x[:count], experts[:count], weights[:count]), alone[:count]), count
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    with threads(3):
        assert torch.equal(mixture(x[order], experts[order], weights[order]), alone[order])


def test_more_pairs_than_are_kept_at_a_time(path: str) -> None:
    """700 tokens choose two of three experts each: they are computed one expert after the other."""
    mixture = Mixture(3, 40, 24).fused()
    x, experts, weights = tokens(700, 40, 3, 2, torch.bfloat16)
    parts = [mixture(*(t[start : start + 20] for t in (x, experts, weights))) for start in range(0, 700, 20)]
    assert torch.equal(mixture(x, experts, weights), torch.cat(parts))


def test_no_tokens_give_no_rows(path: str) -> None:
    empty = (torch.empty(0, 40), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2))
    assert Mixture(3, 40, 24).fused()(*empty).shape == (0, 40)


def test_experts_that_are_not_chosen_are_not_read(tmp_path: Path, path: str) -> None:
    """Two of eight experts of 3 MiB each, mapped from a file: the others' pages never get into memory."""
    experts, hidden, intermediate = 8, 1024, 1024
    file = tmp_path / "weights"
    with file.open("wb") as sparse:
        sparse.truncate(experts * 3 * hidden * intermediate)
    mapped = torch.from_file(str(file), size=experts * 3 * hidden * intermediate, dtype=torch.int8)
    proj_start = experts * 2 * intermediate * hidden
    mixture = Int8Experts(
        mapped[:proj_start].view(experts, 2 * intermediate, hidden),
        torch.ones(experts, 2 * intermediate),
        mapped[proj_start:].view(experts, hidden, intermediate),
        torch.ones(experts, hidden),
    )
    mixture(torch.randn(9, hidden), torch.tensor([[2, 5]] * 9), torch.full((9, 2), 0.5))
    # Up and gate of both, and down of both; a fault brings up to 64 KiB more at either end.
    assert 6 <= resident_mib(file) <= 6.6


def resident_mib(file: Path) -> float:
    smaps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(file))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps)
    return sum(map(int, found)) / 1024


@pytest.mark.parametrize("fault", ["gate first", "experts exchanged", "scales exchanged", "weights by the wrong slot"])
def test_a_planted_fault_is_seen(path: str, fault: str) -> None:
    mixture = Mixture(4, 128, 64)
    x, experts, weights = tokens(12, 128, 4, 2, torch.bfloat16)
    exact = mixture.exact(x, experts, weights)
    if fault == "gate first":
        mixture.fc = mixture.fc.roll(64, dims=1)
    elif fault == "experts exchanged":
        mixture.proj[[0, 1]] = mixture.proj[[1, 0]]
    elif fault == "scales exchanged":
        mixture.fc_scales = mixture.fc_scales.flip(1)
    else:
        weights = weights.flip(1)
    assert relative_error(mixture.fused()(x, experts, weights), exact) > 10 * TOLERANCE[torch.bfloat16]


def test_the_engine_multiplies_by_it_and_gets_what_its_linear_objects_give() -> None:
    mixture = Mixture(4, 128, 64)
    fc = {"weight": mixture.fc, "per_channel_scale": mixture.fc_scales}
    proj = {"weight": mixture.proj, "per_channel_scale": mixture.proj_scales}
    with on_path("avx2"):
        fused = Int8().fused_experts(fc, proj, torch.float32)
        assert isinstance(fused, Int8Experts)
        plain = Experts(
            [Int8Linear(mixture.fc[e], mixture.fc_scales[e]) for e in range(4)],
            [Int8Linear(mixture.proj[e], mixture.proj_scales[e]) for e in range(4)],
        )
        x, experts, weights = tokens(20, 128, 4, 2, torch.float32)
        torch.testing.assert_close(fused(x, experts, weights), plain(x, experts, weights), rtol=1e-4, atol=1e-4)
