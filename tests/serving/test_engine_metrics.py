"""What is measured of a request and of the engine: each thing once, under the right reason, in seconds."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from recorded_metrics import RecordedMetrics

from mixtral_runtime.engine import Counts, EngineStats, FinishReason, Output
from mixtral_runtime.errors import Internal, InvalidArgument, Unavailable
from mixtral_serving import engine_metrics
from mixtral_serving.engine_metrics import FAMILIES, EngineMetrics, Timeline
from mixtral_serving.metrics import Registry

FIRST = "mixtral_time_to_first_token_seconds"
LATER = "mixtral_time_per_output_token_seconds"
DURATION = "mixtral_request_duration_seconds"
STATS = EngineStats(
    active=3, queued=2, max_batch_size=8, kv_blocks_total=100, kv_blocks_free=60, tokens_per_block=32, steps=10,
    prompt_tokens=0, output_tokens=0, finished={}, prefix_blocks_reused=4, prefix_blocks_missed=6, preemptions=1,
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Measured:
    """EngineMetrics with a clock of the test's."""

    def __init__(self) -> None:
        self.triton = RecordedMetrics()
        self.registry = Registry(FAMILIES, self.triton, {})
        self.metrics = EngineMetrics(self.registry)
        self.clock = Clock()

    def serve(self, *outputs: tuple[float, int], reason: FinishReason, streaming: bool = True, **more: Any) -> None:
        """One request; outputs: seconds since its submission and how many tokens came; the last one is final."""
        timeline, begun = Timeline(submitted=self.clock.now), self.clock.now
        if "stop_reason" in more:
            timeline.stop_reason = more.pop("stop_reason")
        self.metrics.accepted()
        produced = 0
        for n, (at, count) in enumerate(outputs, 1):
            self.clock.now = begun + at
            produced += count
            final = n == len(outputs)
            output = Output(
                7, [5] * count, Counts(12, produced), final=final, finish_reason=reason if final else None,
                **(more if n == 1 else {}),
            )  # fmt: skip
            self.metrics.answered(timeline, output, streaming)
        self.registry.publish()

    def sum(self, name: str) -> float:
        return self.triton.value(name)

    def count(self, name: str) -> int:
        return sum(self.triton.metric(name).counts)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured()
    monkeypatch.setattr(engine_metrics, "time", measured.clock)
    return measured


def test_a_streamed_request(measured: Measured) -> None:
    measured.serve((0.5, 1), (0.6, 1), (0.9, 3), reason=FinishReason.LENGTH, queued_s=0.2)
    assert measured.sum(FIRST) == pytest.approx(0.5)
    assert measured.sum(LATER) == pytest.approx(0.4 / 4)  # four tokens came after the first response
    assert measured.sum(DURATION) == pytest.approx(0.9)
    assert measured.sum("mixtral_request_queue_seconds") == pytest.approx(0.2)
    assert measured.sum("mixtral_prompt_tokens_total") == measured.sum("mixtral_request_prompt_tokens") == 12
    assert measured.sum("mixtral_output_tokens_total") == measured.sum("mixtral_request_output_tokens") == 5
    assert measured.sum("mixtral_requests_accepted_total") == 1
    assert measured.triton.values("mixtral_requests_finished_total") == {"length": 1}


def test_a_late_final_flag_without_tokens_does_not_slow_the_tokens_down(measured: Measured) -> None:
    measured.serve((1, 2), (2, 2), (9, 0), reason=FinishReason.TIMEOUT)
    assert measured.sum(LATER) == pytest.approx(0.5)
    assert measured.sum(DURATION) == pytest.approx(9)


def test_without_streaming_there_is_no_first_token_to_time(measured: Measured) -> None:
    measured.serve((3, 40), reason=FinishReason.STOP, streaming=False)
    assert (measured.count(FIRST), measured.count(LATER), measured.count(DURATION)) == (0, 0, 1)
    assert measured.sum("mixtral_output_tokens_total") == 40


def test_one_token_has_no_time_per_later_token(measured: Measured) -> None:
    measured.serve((1, 1), reason=FinishReason.LENGTH)
    assert (measured.count(FIRST), measured.count(LATER)) == (1, 0)


def test_a_request_that_never_began_is_finished_but_has_no_tokens(measured: Measured) -> None:
    measured.serve((2, 0), reason=FinishReason.CANCELLED)
    assert measured.triton.values("mixtral_requests_finished_total") == {"cancelled": 1}
    assert measured.sum(DURATION) == pytest.approx(2)
    for name in (FIRST, LATER, "mixtral_request_queue_seconds", "mixtral_request_prompt_tokens"):
        assert measured.count(name) == 0


def test_a_runtime_that_does_not_tell_the_queue_time_gives_none(measured: Measured) -> None:
    measured.serve((1, 1), (2, 1), reason=FinishReason.LENGTH)
    assert measured.count("mixtral_request_queue_seconds") == 0


@pytest.mark.parametrize("reason", FinishReason)
def test_each_request_ends_under_one_reason(measured: Measured, reason: FinishReason) -> None:
    for _ in range(3):
        measured.serve((1, 1), reason=reason)
    assert measured.triton.values("mixtral_requests_finished_total") == {reason.value: 3}


def test_a_stop_word_that_ended_the_engines_work_is_a_stop_not_a_cancel(measured: Measured) -> None:
    measured.serve((1, 1), reason=FinishReason.CANCELLED, stop_reason=FinishReason.STOP)
    measured.serve((1, 1), reason=FinishReason.LENGTH, stop_reason=FinishReason.STOP)  # it was ready before
    assert measured.triton.values("mixtral_requests_finished_total") == {"stop": 1, "length": 1}


def test_rejections_by_code(measured: Measured) -> None:
    for error in (InvalidArgument("a"), Unavailable("b"), Unavailable("c"), Internal("d")):
        measured.metrics.rejected(error)
    measured.registry.publish()
    found = measured.triton.values("mixtral_requests_rejected_total")
    assert found == {"INVALID_ARGUMENT": 1, "UNAVAILABLE": 2, "INTERNAL": 1}
    assert measured.sum("mixtral_requests_accepted_total") == 0


def test_the_engine_counts_from_the_first_snapshot_and_each_step_once(measured: Measured) -> None:
    snapshots = [
        STATS,
        replace(STATS, steps=14, active=5, prefix_blocks_reused=7, prefix_blocks_missed=8, preemptions=2),
        replace(STATS, steps=14, active=5, prefix_blocks_reused=7, prefix_blocks_missed=8, preemptions=2),
        replace(STATS, steps=20, active=0, queued=0, kv_blocks_free=100, prefix_blocks_reused=9, preemptions=2),
    ]
    for stats in snapshots:
        measured.metrics.read(stats, live=stats.active)
        measured.registry.publish()
    assert measured.sum("mixtral_engine_steps_total") == 10  # the warm-up's ten came before
    assert measured.sum("mixtral_preemptions_total") == 1
    assert measured.sum("mixtral_prefix_blocks_reused_total") == 5
    assert (measured.count("mixtral_batch_size"), measured.sum("mixtral_batch_size")) == (1, 5)  # only while it steps
    for name in ("requests_running", "requests_waiting", "kv_cache_blocks_used", "streams_live"):
        assert measured.sum(f"mixtral_{name}") == 0
    assert measured.sum("mixtral_kv_cache_blocks_free") == measured.sum("mixtral_kv_cache_blocks_limit") == 100


def test_statistics_that_cannot_be_read_hurt_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_metrics, "PUBLISH_S", 0.001)
    measured, asked = Measured(), threading.Semaphore(0)

    def stats() -> EngineStats:
        asked.release()
        raise RuntimeError("not now")

    measured.metrics.start(stats, lambda: 0)
    measured.metrics.accepted()
    for _ in range(3):
        assert asked.acquire(timeout=20)
    measured.metrics.close()
    assert measured.sum("mixtral_requests_accepted_total") == 1
    assert "the engine's statistics could not be read" in caplog.messages


def test_a_fault_of_the_measuring_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    broken: Any = None
    Measured().metrics.answered(broken, Output(1, [1], Counts(1, 1)), True)
    assert caplog.messages == ["a response could not be measured"]
