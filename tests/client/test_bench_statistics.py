"""The figures of a point: distributions against numpy, the formulas of one request, rates, cost and goodput."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_client.bench.result import ClosedLoad, Failure, Load, OpenLoad, RequestRecord
from mixtral_client.bench.statistics import (
    cost,
    distribution,
    e2e_s,
    gaps_s,
    goodput,
    mark_measured,
    perceived_tokens_per_s,
    steady_window,
    summarise,
    tpot_s,
    ttft_s,
)

CLOSED, OPEN = ClosedLoad(2), OpenLoad(1.0, "poisson", 0)
TIMES = st.floats(0, 1e4, allow_nan=False)


def request(
    index: int, sent: float, *responses: tuple[float, int], end: float = 0.0, measured: bool = True
) -> RequestRecord:
    return RequestRecord(
        index=index,
        scheduled_s=sent - 0.5,
        sent_s=sent,
        first_s=responses[0][0] if responses else None,
        end_s=end or responses[-1][0],
        responses=list(responses),
        input_tokens=10,
        output_tokens=sum(tokens for _, tokens in responses),
        finish_reason="length",
        error=None,
        measured=measured,
    )


@given(st.lists(TIMES, min_size=1, max_size=200))
def test_distributions_are_numpy_s(values: list[float]) -> None:
    dist = distribution(values)
    assert dist.count == len(values)
    assert dist.mean == pytest.approx(np.mean(values))
    assert dist.max == max(values)
    for name, percentile in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(dist, name) == pytest.approx(np.percentile(values, percentile))


def test_a_distribution_of_nothing_has_no_values() -> None:
    empty = distribution([])
    assert (empty.count, empty.mean, empty.p99, empty.max) == (0, None, None, None)


def test_latencies_of_an_open_loop_count_from_the_scheduled_arrival() -> None:
    late = request(0, 1.0, (1.25, 1), (2.0, 1))
    assert (ttft_s(late, CLOSED), e2e_s(late, CLOSED)) == (0.25, 1.0)
    assert (ttft_s(late, OPEN), e2e_s(late, OPEN)) == (0.75, 1.5)


def test_a_coalesced_response_is_one_gap_and_all_its_tokens() -> None:
    record = request(0, 0.0, (1.0, 1), (1.5, 4), (2.0, 3))
    assert gaps_s(record) == [0.5, 0.5]
    assert tpot_s(record) == pytest.approx(1.0 / 7)
    assert perceived_tokens_per_s(record) == pytest.approx(8 / 1.0)


def test_tokens_that_came_with_the_first_response_make_nothing_look_faster() -> None:
    """Eight tokens in the first response were made before the time from first to last token began."""
    coalesced, plain = request(0, 0.0, (1.0, 8), (2.0, 2)), request(1, 0.0, (1.0, 1), (2.0, 2))
    assert tpot_s(coalesced) == tpot_s(plain) == 0.5
    assert perceived_tokens_per_s(coalesced) == perceived_tokens_per_s(plain) == 3.0


@given(st.integers(2, 50), st.floats(0.001, 1))
def test_even_single_tokens_have_the_textbook_figures(tokens: int, gap: float) -> None:
    record = request(0, 0.0, *((1 + gap * i, 1) for i in range(tokens)))
    assert tpot_s(record) == pytest.approx(gap)
    assert gaps_s(record) == pytest.approx([gap] * (tokens - 1))
    assert perceived_tokens_per_s(record) == pytest.approx(tokens / (gap * (tokens - 1)))


@pytest.mark.parametrize("responses", [((1.0, 16),), ((1.0, 8), (1.0, 8))], ids=["one response", "at one instant"])
def test_without_a_time_between_tokens_there_is_no_rate(responses: tuple[tuple[float, int], ...]) -> None:
    record = request(0, 0.0, *responses)
    assert tpot_s(record) is None
    assert perceived_tokens_per_s(record) is None


def steady(
    load: Load, records: list[RequestRecord], dry_s: float | None
) -> tuple[tuple[float, float], list[RequestRecord]]:
    window = steady_window(records, load, dry_s)
    return window, mark_measured(records, load, window)


def test_the_closed_window_runs_from_full_concurrency_until_a_worker_runs_dry() -> None:
    records = [
        request(0, 0.0, (1.0, 1), measured=False),
        request(1, 0.2, (1.5, 1), measured=False),
        request(2, 1.0, (2.0, 1)),
        request(3, 1.5, (4.0, 1)),
    ]
    window, marked = steady(CLOSED, records, dry_s=2.0)
    assert window == (1.0, 2.0)
    assert [record.measured for record in marked] == [False, False, True, True], "the tail keeps its whole latency"


def test_without_warm_up_the_closed_window_begins_when_all_workers_have_a_request() -> None:
    records = [request(0, 0.0, (1.0, 1)), request(1, 0.2, (1.0, 1)), request(2, 1.0, (2.0, 1))]
    assert steady_window(records, CLOSED, dry_s=1.5) == (0.2, 1.5)


def test_the_open_window_runs_from_the_first_arrival_after_warm_up_to_the_last() -> None:
    records = [request(i, 0.5 + i, (i + 1.0, 1), measured=i > 0) for i in range(4)]  # scheduled at 0, 1, 2, 3
    window, marked = steady(OPEN, records, dry_s=None)
    assert window == (1.0, 3.0)
    assert [record.measured for record in marked] == [False, True, True, True]


def test_a_stopped_run_s_window_ends_with_the_last_thing_that_happened() -> None:
    records = [request(0, 0.0, (1.0, 1)), request(1, 0.0, (3.0, 1))]
    cut = replace(request(2, 1.0, (2.0, 1), end=2.5), error=Failure("INTERRUPTED", "stopped"))
    window, marked = steady(CLOSED, [*records, cut], dry_s=None)
    assert window == (0.0, 3.0)
    assert [record.measured for record in marked] == [True, True, False]


def test_rates_count_what_happened_inside_the_window() -> None:
    inside = request(0, 1.0, (1.5, 2), (2.5, 2))
    before = request(1, 0.0, (0.5, 4), (1.5, 1), measured=False)
    after = request(2, 2.5, (3.5, 8), (4.0, 1))
    summary = summarise([inside, before, after], CLOSED, (1.0, 3.0))
    assert summary.output_tokens_per_s == (2 + 2 + 1) / 2
    assert summary.requests_per_s == 2 / 2
    assert summary.input_tokens_per_s == 10 / 2
    assert summary.total_tokens_per_s == summary.output_tokens_per_s + summary.input_tokens_per_s
    assert summary.completed == 2
    assert summary.per_gpu is None


def test_a_window_without_length_has_no_rates() -> None:
    summary = summarise([request(0, 0.0, (1.0, 1))], CLOSED, (1.0, 1.0))
    assert (summary.requests_per_s, summary.output_tokens_per_s) == (0.0, 0.0)


def test_failed_requests_are_counted_by_kind_and_have_no_latency() -> None:
    failed = replace(request(1, 0.0, (1.0, 1)), error=Failure("UNAVAILABLE", "full"))
    summary = summarise([request(0, 0.0, (1.0, 1)), failed, replace(failed, index=2)], CLOSED, (0.0, 2.0))
    assert summary.errors == {"UNAVAILABLE": 2}
    assert (summary.completed, summary.ttft_s.count, summary.e2e_s.count) == (1, 1, 1)


def test_rates_per_gpu_are_the_rates_divided() -> None:
    summary = summarise([request(0, 0.0, (1.0, 8))], CLOSED, (0.0, 2.0), gpus=4)
    assert summary.per_gpu is not None
    assert summary.per_gpu.output_tokens_per_s == summary.output_tokens_per_s / 4
    assert summary.per_gpu.requests_per_s == summary.requests_per_s / 4


@given(st.floats(0.01, 1e3), st.floats(0.1, 10), st.floats(0.1, 1e5), st.floats(0.1, 1e5))
def test_an_hour_s_price_is_shared_among_its_tokens_exactly(
    price: float, ratio: float, inputs: float, outputs: float
) -> None:
    shared = cost(price, ratio, inputs, outputs)
    assert shared.prompt is not None
    assert shared.output is not None
    assert shared.blended is not None
    assert shared.output == pytest.approx(ratio * shared.prompt)
    hour = (shared.prompt * inputs + shared.output * outputs) / 1e6 * 3600
    assert hour == pytest.approx(price)
    assert shared.blended * (inputs + outputs) / 1e6 * 3600 == pytest.approx(price)


def test_cost_by_hand() -> None:
    """3.60 an hour is 0.001 a second; 1000 prompt and 1000 output tokens in it, an output token three times as dear."""
    shared = cost(3.6, 3.0, 1000, 1000)
    assert (shared.prompt, shared.output, shared.blended) == pytest.approx((0.25, 0.75, 0.5))


def test_tokens_that_never_came_have_no_price() -> None:
    assert cost(1.0, 3.0, 0.0, 0.0).blended is None
    only_prompts = cost(3.6, 3.0, 1000, 0.0)
    assert only_prompts.prompt == pytest.approx(1.0)
    assert only_prompts.output is None


def test_goodput_is_the_good_share_of_the_rate() -> None:
    assert goodput(4.0, 3, 6) == 2.0
    assert goodput(0.0, 0, 0) == 0.0
    assert math.isclose(goodput(4.0, 6, 6), 4.0)
