"""Limits on latency: how they are written, who meets them, and the search for the highest rate that does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_client.bench.result import ClosedLoad, Failure, RequestRecord
from mixtral_client.bench.search import highest_rate
from mixtral_client.bench.slo import Limit, judge, parse_slo, within

LOAD = ClosedLoad(1)


def request(index: int, ttft: float, tpot: float = 0.01, *, tokens: int = 5, failed: bool = False) -> RequestRecord:
    times = [ttft + tpot * i for i in range(tokens)]
    return RequestRecord(
        index=index,
        scheduled_s=0.0,
        sent_s=0.0,
        first_s=times[0],
        end_s=times[-1],
        responses=[(at, 1) for at in times],
        input_tokens=8,
        output_tokens=tokens,
        finish_reason="length",
        error=Failure("UNAVAILABLE", "full") if failed else None,
        measured=True,
    )


def test_limits_are_read_with_their_units() -> None:
    assert parse_slo("ttft_p99=200ms, tpot_p50=900us,e2e_max=1.5s") == (
        Limit("ttft", "p99", 0.2),
        Limit("tpot", "p50", 0.0009),
        Limit("e2e", "max", 1.5),
    )
    assert str(Limit("ttft", "p99", 0.2)) == "ttft_p99=200ms"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is not a limit"),
        ("ttft_p99=200", "units us, ms, s"),
        ("ttft_p99", "is not a limit"),
        ("itl_p99=1ms", "'itl' in 'itl_p99=1ms' is not one of ttft, tpot, e2e"),
        ("ttft_p98=1ms", "'p98' in 'ttft_p98=1ms' is not one of mean, p50"),
        ("ttft_p99=0ms", "must be above 0"),
        ("ttft_p99=1ms,ttft_p99=2ms", "ttft_p99 has two limits"),
    ],
)
def test_what_is_no_limit_is_named(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_slo(text)


def test_a_request_is_good_when_each_of_its_own_figures_is_within_its_limit() -> None:
    limits = parse_slo("ttft_p50=100ms,tpot_p50=20ms")
    assert within(request(0, 0.1, 0.02), LOAD, limits)
    assert not within(request(0, 0.11, 0.02), LOAD, limits)
    assert not within(request(0, 0.1, 0.03), LOAD, limits)
    assert not within(request(0, 0.1, 0.02, failed=True), LOAD, limits)
    assert within(request(0, 0.1, tokens=1), LOAD, limits), "one token has no TPOT that could be too long"


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=60), st.sampled_from(["p50", "p90", "p95", "p99", "max"]))
def test_the_statistic_is_numpy_s(ttfts: list[float], statistic: str) -> None:
    records = [request(index, ttft) for index, ttft in enumerate(ttfts)]
    (limit,) = judge(records, LOAD, [Limit("ttft", statistic, 1.0)]).limits
    expected = np.percentile(ttfts, 100 if statistic == "max" else int(statistic[1:]))
    assert limit.value_s == pytest.approx(expected)
    assert limit.met == (limit.value_s is not None and limit.value_s <= 1.0)


def test_a_point_meets_its_limits_only_all_together() -> None:
    records = [request(0, 0.1, 0.01), request(1, 0.2, 0.05)]
    outcome = judge(records, LOAD, parse_slo("ttft_max=200ms,tpot_max=20ms"))
    assert [limit.met for limit in outcome.limits] == [True, False]
    assert (outcome.met, outcome.good_requests) == (False, 1)


def test_refusing_requests_cannot_help_a_server() -> None:
    """Nine of ten answered in time: p50 and p90 stand, what reaches the refused one is infinite."""
    records = [*(request(index, 0.1) for index in range(9)), request(9, 0.1, failed=True)]
    outcome = judge(records, LOAD, parse_slo("ttft_p50=200ms,ttft_p95=200ms,ttft_mean=200ms"))
    assert [limit.met for limit in outcome.limits] == [True, False, False]
    assert [limit.value_s for limit in outcome.limits] == [pytest.approx(0.1), None, None]


def test_warm_up_is_not_judged_and_nothing_meets_nothing() -> None:
    slow = replace(request(0, 9.0), measured=False)
    limits = parse_slo("ttft_p99=200ms")
    assert judge([slow, request(1, 0.1)], LOAD, limits).met
    assert not judge([slow], LOAD, limits).met


@given(st.floats(0.1, 10), st.floats(1.5, 100), st.floats(0.01, 0.5), st.floats(0, 1))
def test_the_search_ends_within_its_tolerance_of_the_true_rate(
    low: float, span: float, tolerance: float, place: float
) -> None:
    high = low * span
    capacity = low * span**place
    asked: list[float] = []

    def meets(rate: float) -> bool:
        asked.append(rate)
        return bool(rate <= capacity)

    best = highest_rate(low, high, tolerance, meets)
    assert best is not None
    assert best <= capacity
    assert best == high or capacity < best * (1 + tolerance) * (1 + 1e-9)
    assert all(low <= rate <= high for rate in asked)


def test_the_search_says_when_even_the_lowest_rate_is_too_high() -> None:
    assert highest_rate(1.0, 8.0, 0.1, lambda rate: rate < 1.0) is None
