"""One generator's share of a point: sends its requests and records what came back.

All generators and their parent share the machine's monotonic clock, so their times need no translation.
"""

import asyncio
import contextlib
import itertools
import math
import os
import time
from dataclasses import dataclass
from typing import Any

from mixtral_client.bench.exchange import IDLE_TIMEOUT, UNREACHABLE, Exchange, Target, interrupted
from mixtral_client.bench.result import Failure, RequestRecord
from mixtral_client.bench.workload import PromptSource
from mixtral_client.connection import idle_message
from mixtral_client.generation import GenerationOptions
from mixtral_client.tensors import generation_request

_WATCH_S = 0.25
_LAG_PROBE_S = 0.02
# A server that refuses at once would otherwise be asked thousands of times a second by a closed loop.
_REST_AFTER_ERROR_S = 0.1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of an open loop. at_s: seconds from the point's start."""

    index: int
    at_s: float
    warmup: bool


@dataclass(frozen=True, slots=True)
class Assignment:
    """One generator's share of a point.

    origin: the point's start on the monotonic clock. arrivals: open loop. workers: closed loop; they take the indices
    first, first + step, …; those below warmup_requests, and those sent in the first warmup_s seconds, are warm-up;
    after them come `requests`, or as many as are sent within duration_s.
    """

    origin: float
    source: PromptSource
    ignore_eos: bool
    arrivals: tuple[Arrival, ...] = ()
    workers: int = 0
    first: int = 0
    step: int = 1
    warmup_requests: int = 0
    warmup_s: float = 0.0
    requests: int | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Since the last report: the requests that ended. Now: how many are running, and all tokens so far."""

    records: list[RequestRecord]
    in_flight: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The share is done. dry_s: when the first worker found nothing more to send, None if it never came to that. lost:
    why the server was given up. cpu_s, wall_s: of this process, from the point's start."""

    dry_s: float | None
    lost: str | None
    cpu_s: float
    wall_s: float
    responses: int
    lag_p99_s: float


class Share:
    """An assignment under way."""

    def __init__(self, assignment: Assignment, stub: Any, target: Target) -> None:
        self._assignment = assignment
        self._stub = stub
        self._target = target
        self._indices = itertools.count(assignment.first, assignment.step)
        self._left = assignment.requests
        self._deadline_s: float | None = None
        self._stopping = asyncio.Event()
        self._lost: str | None = None
        self._dry_s: float | None = None
        self._heard = assignment.origin  # when anything last came from the server
        self._running: set[Exchange] = set()
        self._ended: list[RequestRecord] = []
        self._tokens = 0  # of ended requests
        self._responses = 0
        self._lags = [0.0]

    async def run(self) -> Finished:
        await asyncio.sleep(self._assignment.origin - time.monotonic())
        cpu, wall = time.process_time(), time.monotonic()
        helpers = [asyncio.create_task(self._watch()), asyncio.create_task(self._probe_lag())]
        if self._assignment.workers:
            await asyncio.gather(*(self._worker() for _ in range(self._assignment.workers)))
        else:
            await self._open_loop()
        for helper in helpers:
            helper.cancel()
        return Finished(
            dry_s=self._dry_s,
            lost=self._lost,
            cpu_s=time.process_time() - cpu,
            wall_s=time.monotonic() - wall,
            responses=self._responses,
            lag_p99_s=sorted(self._lags)[math.ceil(0.99 * len(self._lags)) - 1],
        )

    def stop(self) -> None:
        """Sends nothing more and cuts off what is running."""
        self._stopping.set()
        for exchange in self._running:
            exchange.cut(interrupted())

    def report(self) -> Report:
        ended, self._ended = self._ended, []
        tokens = self._tokens + sum(exchange.output_tokens for exchange in self._running)
        return Report(ended, len(self._running), tokens)

    def _now_s(self) -> float:
        return time.monotonic() - self._assignment.origin

    async def _worker(self) -> None:
        worked = False  # with more workers than requests some never have anything to run out of
        while not self._stopping.is_set():
            taken = self._take()
            if taken is None:
                if self._dry_s is None and worked:
                    self._dry_s = self._now_s()
                return
            worked = True
            if not await self._request(*taken, scheduled_s=self._now_s()):
                await self._rest(_REST_AFTER_ERROR_S)

    def _take(self) -> tuple[int, bool] | None:
        """(index, whether it is warm-up) of the next request of a closed loop, None when there is none."""
        assignment, now_s = self._assignment, self._now_s()
        index = next(self._indices)
        if index < assignment.warmup_requests or now_s < assignment.warmup_s:
            return index, True
        if self._left is not None:
            self._left -= 1
            return None if self._left < 0 else (index, False)
        assert assignment.duration_s is not None
        if self._deadline_s is None:
            self._deadline_s = now_s + assignment.duration_s
        return (index, False) if now_s < self._deadline_s else None

    async def _open_loop(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for arrival in self._assignment.arrivals:
                await self._rest(arrival.at_s - self._now_s())
                if self._stopping.is_set():
                    return
                tasks.create_task(self._request(arrival.index, arrival.warmup, scheduled_s=arrival.at_s))

    async def _request(self, index: int, warmup: bool, *, scheduled_s: float) -> bool:
        """Sends one request, waits for its end and records it. False if it failed."""
        prompt = self._assignment.source.prompt(index)
        options = GenerationOptions(max_tokens=prompt.max_tokens, ignore_eos=self._assignment.ignore_eos)
        name = f"bench-{os.getpid()}-{index}"
        request = generation_request(prompt.text, None, prompt.input_ids, options, name)
        exchange = Exchange(self._target, time.monotonic)
        self._running.add(exchange)
        try:
            await exchange.run(self._stub, request)
        finally:
            self._running.discard(exchange)
        self._heard = max(self._heard, exchange.heard)
        self._tokens += exchange.output_tokens
        self._responses += len(exchange.responses)
        self._ended.append(_record(exchange, index, warmup, scheduled_s, self._assignment.origin))
        if exchange.error is not None and exchange.error.kind == UNREACHABLE:
            self._give_up(exchange.error.text)
        return exchange.error is None

    def _give_up(self, why: str) -> None:
        """The server is lost: nothing more is sent. What is running ends by itself or by the idle timeout."""
        self._lost = self._lost or why
        self._stopping.set()

    async def _watch(self) -> None:
        """Ends streams on which nothing comes. One task looks at all of them: a timer for each response would cost more
        than reading the response does."""
        while True:
            await asyncio.sleep(min(_WATCH_S, self._target.idle_timeout_s / 4))
            oldest = time.monotonic() - self._target.idle_timeout_s
            self._heard = max([self._heard, *(exchange.heard for exchange in self._running)])
            message = idle_message(self._target.url, self._target.idle_timeout_s)
            for exchange in self._running:
                if exchange.heard < oldest:
                    exchange.cut(Failure(IDLE_TIMEOUT, message))
                    if self._heard < oldest:
                        self._give_up(message)  # no other stream has brought anything either

    async def _probe_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_PROBE_S
            await asyncio.sleep(_LAG_PROBE_S)
            self._lags.append(time.monotonic() - due)

    async def _rest(self, seconds: float) -> None:
        """Sleeps, but wakes to stop."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()


def _record(exchange: Exchange, index: int, warmup: bool, scheduled_s: float, origin: float) -> RequestRecord:
    responses = [(at - origin, tokens) for at, tokens in exchange.responses]
    return RequestRecord(
        index=index,
        scheduled_s=scheduled_s,
        sent_s=exchange.sent - origin,
        first_s=responses[0][0] if responses else None,
        end_s=exchange.ended - origin,
        responses=responses,
        input_tokens=exchange.input_tokens,
        output_tokens=exchange.output_tokens,
        finish_reason=exchange.finish_reason,
        error=exchange.error,
        measured=not warmup,
    )
