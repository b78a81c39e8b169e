"""Runs one point: divides it among the generator processes and gathers what they report."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from mixtral_client.bench.division import Amount, divide
from mixtral_client.bench.exchange import Target
from mixtral_client.bench.generator import Ready, Stop, main
from mixtral_client.bench.result import ClosedLoad, GeneratorUse, Load, RequestRecord
from mixtral_client.bench.share import Assignment, Finished, Report
from mixtral_client.bench.workload import PromptSource
from mixtral_client.errors import MixtralClientError

CPU_LIMIT = 0.8
LAG_LIMIT_S = 0.05
# `auto`: how much one process may get. Well below what one process was measured to carry.
WORKERS_PER_PROCESS = 64
TOKENS_PER_S_PER_PROCESS = 5000
_POLL_S = 0.2
_START_LEAD_S = 0.05  # time for every process to get its share before the point begins


class GeneratorDied(MixtralClientError):
    """A load generator process ended by itself."""


@dataclass(frozen=True, slots=True)
class Live:
    """A point while it runs. tokens: arrived so far in all. ended: the requests that have ended."""

    elapsed_s: float
    in_flight: int
    tokens: int
    ended: list[RequestRecord]


@dataclass(frozen=True, slots=True)
class Raw:
    """What a point brought, before any statistics. dry_s: as in `statistics.steady_window`. stopped: it was cut off.
    lost: why the server was given up."""

    records: list[RequestRecord]
    duration_s: float
    dry_s: float | None
    stopped: bool
    lost: str | None
    generator: GeneratorUse


class Generators:
    """Load generator processes with a pipe each; a context manager that ends them. Raises GeneratorDied."""

    def __init__(self, target: Target, processes: int) -> None:
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        # Ctrl-C reaches the whole group; a process that is just starting would die of it with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for number in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=main, args=(theirs, target), daemon=True, name=f"load-{number}")
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for pipe in self._pipes:
            self._receive(pipe)  # Ready; a point that began without it would begin late

    @property
    def process_ids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def __enter__(self) -> "Generators":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()

    def run(
        self,
        load: Load,
        amount: Amount,
        source: PromptSource,
        *,
        ignore_eos: bool,
        stopping: Callable[[], bool],
        watch: Callable[[Live], None],
    ) -> Raw:
        """Runs one point to its end. stopping: asked all the time; once true, the point is cut off. watch: called about
        five times a second. Raises GeneratorDied."""
        origin = time.monotonic() + _START_LEAD_S
        shares = list(divide(load, amount, source, ignore_eos, origin, len(self._pipes)))
        working = self._pipes[: len(shares)]
        for pipe, share in zip(working, shares, strict=True):
            self._send(pipe, share)
        records: list[RequestRecord] = []
        finished: dict[Pipe, Finished] = {}
        latest: dict[Pipe, Report] = {}
        stopped = False
        while len(finished) < len(working):
            if stopping() and not stopped:
                stopped = True
                for pipe in working:
                    self._send(pipe, Stop())
            waiting = [pipe for pipe in working if pipe not in finished]
            ready = wait(waiting, timeout=_POLL_S)
            for pipe in waiting:
                if pipe not in ready:
                    continue
                message = self._receive(pipe)
                if isinstance(message, Finished):
                    finished[pipe] = message
                elif isinstance(message, Report):
                    records += message.records
                    latest[pipe] = message
            watch(_live(records, latest.values(), time.monotonic() - origin))
        ends = list(finished.values())
        return Raw(
            records=records,
            duration_s=time.monotonic() - origin,
            dry_s=min((end.dry_s for end in ends if end.dry_s is not None), default=None),
            stopped=stopped,
            lost=next((end.lost for end in ends if end.lost), None),
            generator=_use(ends),
        )

    def _send(self, pipe: Pipe, message: Assignment | Stop) -> None:
        try:
            pipe.send(message)
        except OSError as error:
            raise self._died(pipe) from error

    def _receive(self, pipe: Pipe) -> Ready | Report | Finished:
        try:
            message: Ready | Report | Finished = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died(pipe) from error
        return message

    def _died(self, pipe: Pipe) -> GeneratorDied:
        process = self._processes[self._pipes.index(pipe)]
        process.join(1)
        return GeneratorDied(f"a load generator process ended with exit code {process.exitcode}")


def processes_for(loads: list[Load], mean_output_tokens: float) -> int:
    """How many processes `auto` means for the heaviest of these loads; at most half of the cores, so that a server on
    the same machine keeps the other half, and at least 1."""
    needed = 1
    for load in loads:
        if isinstance(load, ClosedLoad):
            needed = max(needed, math.ceil(load.concurrency / WORKERS_PER_PROCESS))
        else:
            needed = max(needed, math.ceil(load.rate * mean_output_tokens / TOKENS_PER_S_PER_PROCESS))
    return max(1, min(needed, (os.cpu_count() or 1) // 2))


def _live(ended: list[RequestRecord], reports: Iterable[Report], elapsed_s: float) -> Live:
    in_flight = tokens = 0
    for report in reports:
        in_flight += report.in_flight
        tokens += report.tokens
    return Live(elapsed_s, in_flight, tokens, ended)


def _use(ends: list[Finished]) -> GeneratorUse:
    cpu_share = max((end.cpu_s / end.wall_s for end in ends if end.wall_s > 0), default=0.0)
    lag_p99_s = max(end.lag_p99_s for end in ends)
    return GeneratorUse(
        processes=len(ends),
        cpu_share=cpu_share,
        cpu_s=sum(end.cpu_s for end in ends),
        responses=sum(end.responses for end in ends),
        lag_p99_s=lag_p99_s,
        limited=cpu_share > CPU_LIMIT or lag_p99_s > LAG_LIMIT_S,
    )
