"""The registry between the serving threads and Triton's metrics: exact sums, and nothing that could hurt a request."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_metrics import RecordedMetrics

from mixtral_serving import metrics
from mixtral_serving.metrics import Family, GaugePublisher, Kind, Registry

COUNTER = Family("done_total", Kind.COUNTER, "Done.", "reason", ("good", "bad"))
GAUGE = Family("now", Kind.GAUGE, "Now.")
HISTOGRAM = Family("wait_seconds", Kind.HISTOGRAM, "Wait.", buckets=(0.1, 1, 10))
LABELS = {"model": "engine", "version": "1"}


def registry() -> tuple[Registry, RecordedMetrics]:
    triton = RecordedMetrics()
    return Registry([COUNTER, GAUGE, HISTOGRAM], triton, LABELS), triton


def test_every_series_is_there_from_the_start_with_its_labels() -> None:
    _, triton = registry()
    assert triton.value("done_total", **LABELS, reason="good") == 0
    assert triton.value("done_total", **LABELS, reason="bad") == 0
    assert triton.value("now", **LABELS) == 0


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(["good", "bad"]), st.integers(0, 100)))))
def test_what_is_published_in_pieces_is_counted_once(actions: list[tuple[str, int] | None]) -> None:
    """None publishes."""
    served, triton = registry()
    for action in actions:
        if action is None:
            served.publish()
        else:
            served.add("done_total", action[1], action[0])
    served.publish()
    served.publish()
    for reason in ("good", "bad"):
        expected = sum(action[1] for action in actions if action and action[0] == reason)
        assert triton.value("done_total", reason=reason) == expected


def test_adding_from_many_threads_while_publishing_loses_nothing() -> None:
    served, triton = registry()

    def work() -> None:
        for n in range(500):
            served.add("done_total", 1, "good")
            served.observe("wait_seconds", 0.5)
            if n % 50 == 0:
                served.publish()  # RecordedMetric fails when two threads call it at once

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served.publish()
    assert triton.value("done_total", reason="good") == 4000
    assert triton.metric("wait_seconds").counts == [0, 4000, 0, 0]


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    served, triton = registry()
    for seconds in (0.0, 0.1, 0.10001, 1, 9, 10, 11, 1e9):
        served.observe("wait_seconds", seconds)
    served.publish()
    assert triton.metric("wait_seconds").counts == [2, 2, 2, 2]


def test_an_unchanged_gauge_costs_no_call() -> None:
    served, triton = registry()
    for number in (3, 3, 3, 5, 5):
        served.set("now", number)
        served.publish()
    assert (triton.value("now"), triton.metric("now").calls) == (5, 2)


def test_values_that_would_crash_the_server_never_reach_it() -> None:
    served, triton = registry()
    served.add("done_total", -1, "good")
    for number in (float("nan"), float("inf"), -0.5):
        served.observe("wait_seconds", number)
    served.set("now", float("nan"))
    served.publish()
    assert triton.value("done_total", reason="good") == 0
    assert triton.metric("wait_seconds").calls == triton.metric("now").calls == 0


@pytest.mark.parametrize("fails", ["family", "metric"])
def test_without_its_metrics_a_model_still_serves(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RecordedMetrics):
        def __call__(self, name: str, description: str, kind: str) -> Any:
            if fails == "family":
                raise RuntimeError("no metrics here")
            return super().__call__(name, description, "gauge")  # then the first increment fails

    served = Registry([COUNTER], Broken(), LABELS)
    for _ in range(3):
        served.add("done_total", 1, "good")
        served.publish()
    assert caplog.messages == ["this model goes on without metrics"]


def test_observations_that_nobody_takes_are_bounded() -> None:
    served, triton = registry()
    for _ in range(metrics.MAX_PENDING + 10):
        served.observe("wait_seconds", 1)
    served.publish()
    assert triton.metric("wait_seconds").calls == metrics.MAX_PENDING


def test_gauges_are_read_and_published_until_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PUBLISH_S", 0.001)
    served, triton = registry()
    values, read_all = iter([1.0, 2.0, 3.0]), threading.Event()

    def read() -> float:
        value = next(values, None)
        if value is None:
            read_all.set()
        return 3.0 if value is None else value

    publisher = GaugePublisher(served, {"now": read})
    assert read_all.wait(20)
    publisher.close()
    assert triton.value("now") == 3.0
    assert triton.metric("now").calls == 3  # only what changed
