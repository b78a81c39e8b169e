"""The live streams of the engine model: one thread polls the engine and answers, so the step loop never waits.

While this thread sends, the engine goes on and merges what it produces, so a path that lags gets fewer and larger
responses by itself.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mixtral_runtime.engine import Counts, Engine, FinishReason, Output, Request
from mixtral_runtime.errors import Internal
from mixtral_serving.engine_metrics import EngineMetrics, Timeline
from mixtral_serving.engine_request import ResponseFlags

HEARTBEAT_S = 1.0  # how long a stream may be silent before an empty response shows a cancel
_POLL_S = 0.1
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
    stream_id: int = field(default_factory=lambda: secrets.randbits(64))  # not guessable: it can stop the stream
    timeline: Timeline = field(default_factory=Timeline)
    sent: int = 0
    last_sent: float = field(default_factory=time.monotonic)


class Streams:
    """Submits requests to the engine and sends what it returns. `respond(stream, output)` makes Triton's response;
    without an output it is an empty one. Senders are used by the one thread of this object alone."""

    def __init__(self, engine: Engine, respond: Callable[[Stream, Output | None], Any], metrics: EngineMetrics) -> None:
        self._engine = engine
        self._respond = respond
        self._metrics = metrics
        self._live: dict[int, Stream] = {}  # by engine id
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._live)

    def submit(self, request: Request, stream: Stream) -> None:
        """Raises what the engine raises; then the stream is not live and the caller still owns its sender."""
        with self._lock:  # an output may be polled before the id is known here
            self._live[self._engine.submit(request)] = stream
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
        while True:
            closing = self._closing.is_set()
            outputs = self._engine.poll(_POLL_S)
            for output in outputs:
                self._deliver(output)
            if closing and not outputs:
                return
            self._tend()

    def _deliver(self, output: Output) -> None:
        with self._lock:
            stream = self._live.get(output.id)
            if output.final:
                self._live.pop(output.id, None)
        if stream is not None:  # None: it was given up, and the engine was still ending it
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

    def _give_up(self, engine_id: int, stream: Stream) -> None:
        with self._lock:
            self._live.pop(engine_id, None)
        self._engine.cancel(engine_id)
        failure = Output(engine_id, [], Counts(0, 0), final=True, finish_reason=FinishReason.ERROR, error=_FAILURE)
        try:
            stream.sender.send(self._respond(stream, failure), True)
        except Exception:
            log.exception("nor could its error")
        self._metrics.answered(stream.timeline, failure, stream.streaming)

    def _tend(self) -> None:
        """Heartbeats for silent streams of the ensemble, whose cancel only `postprocessing` sees; requests made to
        the engine model itself are asked here."""
        now = time.monotonic()
        with self._lock:
            live = list(self._live.items())
        for engine_id, stream in live:
            if stream.context is None:
                if stream.sender.is_cancelled():
                    self._engine.cancel(engine_id)
            elif stream.streaming and now - stream.last_sent > HEARTBEAT_S:
                self._send(engine_id, stream, None)
