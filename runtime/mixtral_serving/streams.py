"""The live streams of the engine model: one thread takes what the engine made and sends it; the step loop never waits.

What it cannot send yet, because it is busy or the window is full, waits in one entry per stream: a path that lags gets
fewer and larger responses by itself.
"""

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mixtral_runtime.engine import MAX_PRIORITY, Counts, Engine, FinishReason, Output, Request
from mixtral_runtime.errors import Internal, Unavailable
from mixtral_serving.admission import Admission
from mixtral_serving.counters import Counter, Counters, Drain
from mixtral_serving.engine_metrics import EngineMetrics, Timeline
from mixtral_serving.engine_request import ResponseFlags
from mixtral_serving.pending import Pending
from mixtral_serving.window import Window

HEARTBEAT_S = 1.0  # how long a stream may be silent before an empty response shows a cancel
_POLL_S = 0.1
# Streams of the engine model's own clients that are asked for a cancel per _POLL_S, in turn: a question goes to the
# server and back while no response can leave. Of 256 such streams each is asked every 1.6 s, and of a few at once.
_QUESTIONS = 16
_SENDS_BETWEEN_POLLS = 8
_WINDOW_PAUSE_S = 0.0005  # about two responses of the path
_STOPPING = Unavailable("the server is shutting down")
_FAILURE = Internal("a response could not be made, see the log")

log = logging.getLogger(__name__)


class ResponseSender(Protocol):
    """Triton's sender of one request. After the final response no call on it is allowed: the server would crash."""

    def send(self, response: Any, final: bool) -> None: ...
    def is_cancelled(self) -> bool: ...


@dataclass(slots=True)
class Stream:
    """One request being answered. context: travels on the first response; only requests of the ensemble have one.
    seed: of its sampling, told on the first response; None when greedy."""

    sender: ResponseSender
    request_id: str
    flags: ResponseFlags
    streaming: bool
    context: bytes | None
    seed: int | None = None
    stream_id: int = field(default_factory=lambda: int.from_bytes(os.urandom(8)))  # not guessable: it can stop it
    timeline: Timeline = field(default_factory=Timeline)
    sent: int = 0
    last_sent: float = field(default_factory=time.monotonic)
    last_asked: float = 0.0  # for a cancel

    @property
    def interval(self) -> int:
        """How many tokens the next response needs. The first one never waits: its delay is what a person notices."""
        return 1 if self.timeline.first is None else self.flags.interval


class Streams:
    """Submits requests to the engine and sends what it returns. `respond(stream, output)` makes Triton's response;
    without an output it is an empty one. Senders are used by the one thread of this object alone."""

    def __init__(
        self,
        engine: Engine,
        respond: Callable[[Stream, Output | None], Any],
        metrics: EngineMetrics,
        counters: Counters,
        admission: Admission,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._respond = respond
        self._metrics = metrics
        self._counters = counters
        self._window = Window(counters)
        self._pending = Pending()
        self._live: dict[int, Stream] = {}  # by engine id
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._live)

    def submit(self, request: Request, stream: Stream) -> None:
        """Raises Unavailable and what the engine raises; then the stream is not live and the caller still owns its
        sender. A request that goes before all others, the supervisor's, is not refused for what waits behind it."""
        if self._counters[Counter.DRAIN] != Drain.NONE:
            raise _STOPPING
        tokens = len(request.prompt_ids)
        first = request.priority == MAX_PRIORITY
        with self._lock:  # an output may be polled before the id is known here
            # With nobody waiting the engine is not asked: it would be part of each first token's delay.
            if not first and len(self._admission):
                self._admission.check(tokens, self._engine.stats().queued)
            engine_id = self._engine.submit(request)
            self._live[engine_id] = stream
            if not first:
                self._admission.add(engine_id, tokens)
            self._counters[Counter.LIVE] = len(self._live)
        self._metrics.accepted()

    def stop(
        self,
        *,
        stream_id: int | None = None,
        request_id: str = "",
        reason: FinishReason = FinishReason.CANCELLED,
    ) -> int:
        """Cancels the stream of an id, or every stream of a client's request id. Returns how many there were. reason:
        what the metrics call it; for the engine every stop is a cancel."""
        with self._lock:
            found = [
                (engine_id, stream)
                for engine_id, stream in self._live.items()
                if (stream.stream_id == stream_id if stream_id is not None else request_id == stream.request_id != "")
            ]
        for engine_id, stream in found:
            stream.timeline.stop_reason = reason
            self._engine.cancel(engine_id)
        return len(found)

    def close(self, drain_s: float) -> None:
        """Lets running requests finish for `drain_s` seconds, ends the rest, answers everyone."""
        self._engine.close(drain_s)
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        tended = time.monotonic()
        while True:
            closing = self._closing.is_set()
            outputs = self._engine.poll(0.0 if self._pending.ready else _POLL_S)
            self._take(outputs)
            self._send_pending()
            if closing and not outputs and not self._pending.ready:
                return
            if (now := time.monotonic()) - tended >= _POLL_S:
                tended = now
                self._tend(now)

    def _take(self, outputs: list[Output]) -> None:
        with self._lock:
            for output in outputs:
                stream = self._live.get(output.id)
                if stream is None or stream.timeline.first is None:
                    self._admission.begun(output.id)
                if stream is not None:  # None: it was given up, the engine was ending it
                    self._pending.add(output, stream.interval)

    def _send_pending(self) -> None:
        """A few at a time: what the engine makes meanwhile joins those that still wait."""
        for _ in range(_SENDS_BETWEEN_POLLS):
            if not self._pending.ready:
                return
            if not self._window.is_open(time.monotonic()):
                time.sleep(_WINDOW_PAUSE_S)
                return
            output = self._pending.take()
            with self._lock:
                stream = self._live[output.id]
                if output.final:
                    self._forget(output.id)
            if output.finish_reason is FinishReason.CANCELLED and self._counters[Counter.DRAIN] == Drain.END:
                output = replace(output, finish_reason=FinishReason.ERROR, error=_STOPPING)
            self._send(output.id, stream, output)

    def _send(self, engine_id: int, stream: Stream, output: Output | None) -> None:
        """A response that cannot be made or sent must not take the other streams with it."""
        final = output is not None and output.final
        try:
            stream.sender.send(self._respond(stream, output), final)
        except Exception:
            log.exception("a response could not be sent")
            self._give_up(engine_id, stream)
        else:
            if output is not None:
                self._metrics.answered(stream.timeline, output, stream.streaming)
        stream.sent += 1
        stream.last_sent = time.monotonic()
        if stream.context is not None:
            self._window.sent()

    def _give_up(self, engine_id: int, stream: Stream) -> None:
        with self._lock:
            self._forget(engine_id)
        self._pending.drop(engine_id)
        self._engine.cancel(engine_id)
        failure = Output(engine_id, [], Counts(0, 0), final=True, finish_reason=FinishReason.ERROR, error=_FAILURE)
        try:
            stream.sender.send(self._respond(stream, failure), True)
        except Exception:
            log.exception("nor could its error")
        self._metrics.answered(stream.timeline, failure, stream.streaming)

    def _forget(self, engine_id: int) -> None:
        self._live.pop(engine_id, None)
        self._counters[Counter.LIVE] = len(self._live)

    def _tend(self, now: float) -> None:
        """Heartbeats for silent streams of the ensemble, whose cancel only `postprocessing` sees; requests made to
        the engine model itself are asked here."""
        self._counters[Counter.PROGRESS] = self._engine.stats().steps
        with self._lock:
            live = list(self._live.items())
        ending = self._counters[Counter.DRAIN] == Drain.END
        for engine_id, stream in live:
            if ending:
                self._engine.cancel(engine_id)
            if stream.context is not None and stream.streaming and now - stream.last_sent > HEARTBEAT_S:
                self._send(engine_id, stream, None)
        own = [(stream.last_asked, engine_id, stream) for engine_id, stream in live if stream.context is None]
        for _, engine_id, stream in heapq.nsmallest(_QUESTIONS, own):  # ids differ: two streams are never compared
            stream.last_asked = now
            if stream.sender.is_cancelled():
                self._engine.cancel(engine_id)
