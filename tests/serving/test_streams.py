"""The thread between engine and Triton: order, heartbeats, stops, and failures that stay with their own stream."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from recorded_metrics import RecordedMetrics

from mixtral_runtime.engine import Counts, EngineLimits, EngineStats, FinishReason, Output, Request
from mixtral_runtime.errors import Unavailable
from mixtral_serving import streams, window
from mixtral_serving.admission import LONGEST_PROMPTS, Admission
from mixtral_serving.counters import Counter, Counters, Drain
from mixtral_serving.engine_metrics import FAMILIES, EngineMetrics
from mixtral_serving.engine_request import ResponseFlags
from mixtral_serving.metrics import Registry
from mixtral_serving.streams import Stream, Streams

WAIT_S = 20.0
CONTEXT = b"[[], []]"
FLAGS = ResponseFlags(log_probs=False, num_input_tokens=False, num_output_tokens=False)


class ScriptedEngine:
    """An engine behind the seam whose outputs the test writes."""

    limits = EngineLimits(8, 100, 200, 64)

    def __init__(self) -> None:
        self.outputs: queue.Queue[Output] = queue.Queue()
        self.cancelled: queue.Queue[int] = queue.Queue()
        self.full = False
        self.queued = 0
        self._next = 100

    def submit(self, request: Request) -> int:
        if self.full:
            raise Unavailable("the queue is full")
        self._next += 1
        return self._next

    def cancel(self, request_id: int) -> None:
        self.cancelled.put(request_id)

    def poll(self, timeout_s: float) -> list[Output]:
        try:
            return [self.outputs.get(timeout=timeout_s / 10 or 0.001)]
        except queue.Empty:
            return []

    def stats(self) -> EngineStats:
        return EngineStats(0, self.queued, 8, 0, 0, 0, 0, 0, 0, {})

    def close(self, drain_s: float = 0.0) -> None:
        pass

    def emit(self, request_id: int, *ids: int, final: bool = False) -> None:
        reason = FinishReason.LENGTH if final else None
        self.outputs.put(Output(request_id, list(ids), Counts(1, len(ids)), final=final, finish_reason=reason))


@dataclass
class RecordingSender:
    """Fails the test when it is touched after its final response: Triton would crash."""

    sent: queue.Queue[tuple[Any, bool]] = field(default_factory=queue.Queue)
    cancelled: bool = False
    ended: bool = False
    broken: bool = False
    misuse: list[str] = field(default_factory=list)

    def send(self, response: Any, final: bool) -> None:
        if self.ended:
            self.misuse.append("send")
        if self.broken:
            raise RuntimeError("the pipe is gone")
        self.ended = final
        self.sent.put((response, final))

    def is_cancelled(self) -> bool:
        if self.ended:
            self.misuse.append("is_cancelled")
        return self.cancelled

    def next(self) -> tuple[Any, bool]:
        return self.sent.get(timeout=WAIT_S)


def respond(stream: Stream, output: Output | None) -> Any:
    if output is not None and 666 in output.token_ids:
        raise ValueError("cannot be made")
    if output is not None and output.error is not None:
        return output.error.text
    return None if output is None else output.token_ids


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def metrics() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.fixture
def registry(metrics: RecordedMetrics) -> Registry:
    return Registry(FAMILIES, metrics, {})


@pytest.fixture
def counters(tmp_path: Path) -> Counters:
    return Counters(tmp_path / "counters")


@pytest.fixture
def served(engine: ScriptedEngine, registry: Registry, counters: Counters) -> Iterator[Streams]:
    served = Streams(engine, respond, EngineMetrics(registry), counters, Admission(engine.limits, None))
    yield served
    served.close(0)
    assert not [t for t in threading.enumerate() if t.name == "responses"]


def open_stream(
    served: Streams, *, context: bytes | None = CONTEXT, request_id: str = "", sender: RecordingSender | None = None
) -> tuple[RecordingSender, Stream]:
    sender = sender or RecordingSender()
    stream = Stream(sender, request_id, FLAGS, streaming=True, context=context)
    served.submit(Request([1], 5), stream)
    return sender, stream


def test_responses_come_in_order_and_the_stream_is_forgotten(engine: ScriptedEngine, served: Streams) -> None:
    sender, _ = open_stream(served)
    for token in range(10):
        engine.emit(101, token)
    engine.emit(101, 10, final=True)
    assert [sender.next() for _ in range(11)] == [([token], token == 10) for token in range(11)]
    assert len(served) == 0
    assert sender.misuse == []


def test_a_refused_request_leaves_nothing(engine: ScriptedEngine, served: Streams) -> None:
    engine.full = True
    with pytest.raises(Unavailable, match="the queue is full"):
        open_stream(served)
    assert len(served) == 0


def test_silent_streams_of_the_ensemble_get_heartbeats(
    engine: ScriptedEngine, served: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.02)
    through_ensemble, _ = open_stream(served)
    direct, _ = open_stream(served, context=None)
    for _ in range(3):
        assert through_ensemble.next() == (None, False)
    assert direct.sent.empty()
    engine.emit(101, final=True)
    engine.emit(102, final=True)
    while not through_ensemble.next()[1]:
        pass
    assert direct.next() == ([], True)
    assert through_ensemble.misuse == direct.misuse == []


def test_a_client_of_the_engine_model_that_leaves_is_cancelled(engine: ScriptedEngine, served: Streams) -> None:
    sender, _ = open_stream(served, context=None)
    sender.cancelled = True
    assert engine.cancelled.get(timeout=WAIT_S) == 101


def test_each_of_many_clients_of_the_engine_model_has_its_turn_to_be_asked(
    engine: ScriptedEngine, served: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_QUESTIONS", 2)
    monkeypatch.setattr(streams, "_POLL_S", 0.02)
    senders = [open_stream(served, context=None)[0] for _ in range(5)]
    for number, sender in reversed(list(enumerate(senders))):  # those before it are asked first, and live on
        sender.cancelled = True
        assert engine.cancelled.get(timeout=WAIT_S) == 101 + number
        sender.cancelled = False
        engine.emit(101 + number, final=True)
        assert sender.next() == ([], True)
        drain(engine.cancelled)


def drain(cancelled: "queue.Queue[int]") -> set[int]:
    found = set()
    while not cancelled.empty():
        found.add(cancelled.get())
    return found


def test_a_stream_is_stopped_by_its_own_id_or_by_the_clients(engine: ScriptedEngine, served: Streams) -> None:
    _, first = open_stream(served, request_id="same")
    open_stream(served, request_id="same")
    open_stream(served, request_id="")
    assert first.stream_id != 0
    assert served.stop(stream_id=first.stream_id) == 1
    assert drain(engine.cancelled) == {101}
    assert served.stop(request_id="same") == 2
    assert drain(engine.cancelled) == {101, 102}
    assert served.stop(request_id="") == 0
    assert served.stop(stream_id=5) == 0


@pytest.mark.parametrize("final", [False, True])
def test_a_response_that_cannot_be_made_ends_its_own_stream_with_an_error(
    engine: ScriptedEngine, served: Streams, final: bool
) -> None:
    sender, _ = open_stream(served)
    other, _ = open_stream(served)
    engine.emit(101, 666, final=final)
    engine.emit(101, 5)  # was already on its way
    engine.emit(102, 7)
    assert sender.next() == ("INTERNAL: a response could not be made, see the log", True)
    assert other.next() == ([7], False)
    assert engine.cancelled.get(timeout=WAIT_S) == 101
    assert sender.sent.empty()
    assert (len(served), sender.misuse) == (1, [])


def test_a_broken_sender_is_given_up(engine: ScriptedEngine, served: Streams) -> None:
    open_stream(served, sender=RecordingSender(broken=True))
    other, _ = open_stream(served)
    engine.emit(101, 5)
    engine.emit(102, 7, final=True)
    assert other.next() == ([7], True)
    assert engine.cancelled.get(timeout=WAIT_S) == 101
    assert len(served) == 0


def test_every_stream_is_counted_once_however_it_ends(
    engine: ScriptedEngine, served: Streams, registry: Registry, metrics: RecordedMetrics
) -> None:
    complete, _ = open_stream(served)
    failing, _ = open_stream(served)
    _, found = open_stream(served)
    open_stream(served, sender=RecordingSender(broken=True))
    engine.emit(101, 5)
    engine.emit(101, 6, final=True)
    engine.emit(102, 666, final=True)
    engine.emit(102, 7, final=True)  # was already on its way
    served.stop(stream_id=found.stream_id, reason=FinishReason.STOP)
    engine.outputs.put(Output(103, [9], Counts(1, 1), final=True, finish_reason=FinishReason.CANCELLED))
    engine.emit(104, 8)
    engine.emit(104, 8, final=True)
    while len(served) or not engine.outputs.empty():
        threading.Event().wait(0.001)
    served.close(0)
    registry.publish()
    assert metrics.values("mixtral_requests_finished_total") == {"length": 1, "stop": 1, "error": 2}
    assert metrics.value("mixtral_requests_accepted_total") == 4
    assert metrics.value("mixtral_output_tokens_total") == 3
    assert failing.misuse == complete.misuse == []


def test_what_cannot_be_sent_yet_joins_into_one_response(
    engine: ScriptedEngine, served: Streams, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detokenizer answers nothing here, so after a window's worth the rest waits and grows together."""
    monkeypatch.setattr(window, "STALL_S", 1000.0)
    sender, _ = open_stream(served)
    for token in range(window.SIZE):
        engine.emit(101, token)
        assert sender.next() == ([token], False)
    for token in range(100, 110):
        engine.emit(101, token)
    engine.emit(101, 110, final=True)
    while not engine.outputs.empty():
        time.sleep(0.01)
    assert sender.sent.empty()
    counters[Counter.HANDLED] = 1
    assert sender.next() == (list(range(100, 111)), True)
    assert counters[Counter.SENT] == window.SIZE + 1


def test_a_stream_may_ask_for_fewer_and_larger_responses(engine: ScriptedEngine, served: Streams) -> None:
    sender = RecordingSender()
    served.submit(Request([1], 5), Stream(sender, "", replace(FLAGS, interval=3), streaming=True, context=CONTEXT))
    engine.emit(101, 0)
    assert sender.next() == ([0], False), "the first token does not wait"
    for token in range(1, 8):
        engine.emit(101, token)
    engine.emit(101, 8, final=True)
    assert [sender.next() for _ in range(3)] == [([1, 2, 3], False), ([4, 5, 6], False), ([7, 8], True)]


def test_a_draining_server_refuses_new_requests_and_finishes_what_runs(
    engine: ScriptedEngine, served: Streams, counters: Counters
) -> None:
    sender, _ = open_stream(served)
    assert counters[Counter.LIVE] == 1
    counters[Counter.DRAIN] = Drain.REFUSE
    with pytest.raises(Unavailable, match="shutting down"):
        open_stream(served)
    engine.emit(101, 1, final=True)
    assert sender.next() == ([1], True)
    assert counters[Counter.LIVE] == 0


def test_at_the_end_of_the_drain_time_running_requests_end_with_an_error(
    engine: ScriptedEngine, served: Streams, counters: Counters
) -> None:
    sender, _ = open_stream(served)
    counters[Counter.DRAIN] = Drain.END
    assert engine.cancelled.get(timeout=WAIT_S) == 101
    reason = FinishReason.CANCELLED
    engine.outputs.put(Output(101, [], Counts(1, 0), final=True, finish_reason=reason))
    assert sender.next() == ("UNAVAILABLE: the server is shutting down", True)


def test_a_long_queue_refuses_requests_but_not_the_one_that_goes_before_all(
    engine: ScriptedEngine, served: Streams
) -> None:
    """The engine admits nothing here, so each prompt of the greatest length waits."""
    limit = LONGEST_PROMPTS * engine.limits.max_input_len
    prompt = [1] * engine.limits.max_input_len
    for _ in range(LONGEST_PROMPTS):
        submit(served, Request(prompt, 5))
        engine.queued += 1
    with pytest.raises(Unavailable, match=f"{limit} prompt tokens wait and the prompt has 1, the limit is {limit}"):
        submit(served, Request([1], 5))
    submit(served, Request([1], 1, priority=1.0))
    engine.emit(101, 7)  # it began
    engine.queued -= 1
    while not engine.outputs.empty():
        time.sleep(0.01)
    submit(served, Request(prompt, 5))


def submit(served: Streams, request: Request) -> None:
    served.submit(request, Stream(RecordingSender(), "", FLAGS, streaming=True, context=CONTEXT))
