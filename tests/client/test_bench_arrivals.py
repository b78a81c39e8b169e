"""Arrivals of an open loop: the same for a seed, the right rate, the right spread."""

from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_client.bench.arrivals import arrival_times
from mixtral_client.bench.division import Amount, open_arrivals
from mixtral_client.bench.result import Arrivals, OpenLoad

KINDS: tuple[Arrivals, ...] = ("poisson", "constant", "bursty")
MANY = 20_000


def times(load: OpenLoad, count: int = MANY) -> npt.NDArray[np.float64]:
    return np.array(list(islice(arrival_times(load), count)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_the_mean_rate_is_the_rate_asked_for(kind: Arrivals, rate: float) -> None:
    assert MANY / times(OpenLoad(rate, kind, 1))[-1] == pytest.approx(rate, rel=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_arrivals(kind: Arrivals) -> None:
    assert (times(OpenLoad(2.0, kind, 7), 500) == times(OpenLoad(2.0, kind, 7), 500)).all()


@pytest.mark.parametrize("kind", ["poisson", "bursty"])
def test_another_seed_gives_others(kind: Arrivals) -> None:
    assert (times(OpenLoad(2.0, kind, 7), 500) != times(OpenLoad(2.0, kind, 8), 500)).any()


@pytest.mark.parametrize(
    ("load", "variation"),
    [
        (OpenLoad(3.0, "constant", 0), 0.0),
        (OpenLoad(3.0, "poisson", 0), 1.0),
        (OpenLoad(3.0, "bursty", 0, burstiness=1.0), 1.0),
        (OpenLoad(3.0, "bursty", 0), 2.0),
        (OpenLoad(3.0, "bursty", 0, burstiness=0.1), 0.1**-0.5),
    ],
    ids=["constant", "poisson", "gamma 1", "gamma 0.25", "gamma 0.1"],
)
def test_the_spread_of_the_gaps(load: OpenLoad, variation: float) -> None:
    gaps = np.diff(times(load))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.08, abs=1e-9)


def test_poisson_gaps_are_exponential() -> None:
    """The share of gaps beyond t is exp(-rate t)."""
    gaps = np.diff(times(OpenLoad(2.0, "poisson", 3)))
    for t in (0.1, 0.5, 1.0, 2.0):
        assert (gaps > t).mean() == pytest.approx(np.exp(-2.0 * t), abs=0.01)


@given(st.sampled_from(KINDS), st.floats(0.1, 100), st.integers(0, 2**32))
def test_arrivals_begin_at_zero_and_never_go_back(kind: Arrivals, rate: float, seed: int) -> None:
    at = times(OpenLoad(rate, kind, seed), 600)
    assert at[0] == 0
    assert (np.diff(at) >= 0).all()


@given(st.integers(0, 20), st.integers(1, 50))
def test_a_number_of_requests_is_exact_and_comes_after_the_warm_up(warmup: int, requests: int) -> None:
    arrivals = open_arrivals(OpenLoad(5.0, "poisson", 1), Amount(requests=requests, warmup_requests=warmup))
    assert [arrival.warmup for arrival in arrivals] == [True] * warmup + [False] * requests
    assert [arrival.index for arrival in arrivals] == list(range(warmup + requests))


def test_a_duration_counts_from_the_first_measured_arrival() -> None:
    arrivals = open_arrivals(OpenLoad(10.0, "constant", 1), Amount(duration_s=2.0, warmup_s=1.0))
    measured = [arrival.at_s for arrival in arrivals if not arrival.warmup]
    assert (measured[0], len(measured)) == (1.0, 20)
    assert len(arrivals) == 30
