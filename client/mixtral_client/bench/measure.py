"""A whole run: all points one after another, and the result of what was measured, however it ended."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import psutil

from mixtral_client.bench.exchange import Target
from mixtral_client.bench.plan import BenchOptions, Level, Task, amount, open_load, plan_loads, plan_tasks
from mixtral_client.bench.result import (
    BenchResult,
    Hardware,
    Load,
    Point,
    Search,
    Server,
    Skipped,
)
from mixtral_client.bench.runner import GeneratorDied, Generators, Live, Raw, processes_for
from mixtral_client.bench.search import highest_rate
from mixtral_client.bench.slo import judge
from mixtral_client.bench.statistics import mark_measured, steady_window, summarise
from mixtral_client.status import ServerStatus

_PACKAGES = ("mixtral-triton", "grpcio", "numpy", "tritonclient")


class Observer(Protocol):
    """Who is told while a run goes on."""

    def skipped(self, skipped: Skipped) -> None: ...
    def begins(self, level: Level) -> None: ...
    def runs(self, live: Live) -> None: ...
    def ended(self, level: Level, point: Point) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """result: of everything measured. interrupted: the user stopped it. lost: why the server was given up."""

    result: BenchResult
    interrupted: bool
    lost: str | None


class _Ended(Exception):
    """The run ends before its plan does."""


def run_bench(
    options: BenchOptions, target: Target, status: ServerStatus, *, stopping: Callable[[], bool], observer: Observer
) -> Outcome:
    """Measures all points. status: what the server said of itself. stopping: once true, the running point is cut off
    and the run ends with what it has. Raises NothingToRun and DataFileError."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    tasks, skipped = plan_tasks(options, status.manifest, status.limits)
    for entry in skipped:
        observer.skipped(entry)
    loads = plan_loads(options, status.limits)
    processes = options.processes or processes_for(loads, max(task.mean_output_tokens for task in tasks))
    points: list[Point] = []
    search: Search | None = None
    lost: str | None = None

    def measured(task: Task, load: Load) -> Point:
        nonlocal lost
        if stopping():
            raise _Ended
        level = Level(task, load, amount(options, load))
        observer.begins(level)
        raw = generators.run(
            load,
            level.amount,
            task.source,
            ignore_eos=task.workload.ignore_eos,
            stopping=stopping,
            watch=observer.runs,
        )
        points.append(point(options, level, raw))
        observer.ended(level, points[-1])
        lost = raw.lost
        if raw.stopped or lost is not None:
            raise _Ended
        return points[-1]

    def meets(rate: float) -> bool:
        outcome = measured(tasks[0], open_load(options, rate)).slo
        assert outcome is not None
        return outcome.met

    with Generators(target, processes) as generators:
        try:
            if options.search is not None:
                low, high = options.search
                best = highest_rate(low, high, options.search_tolerance, meets)
                search = Search(low, high, options.search_tolerance, best)
            else:
                for task in tasks:
                    for load in loads:
                        measured(task, load)
        except _Ended:
            pass
        except GeneratorDied as error:
            lost = str(error)
    interrupted = stopping()
    result = BenchResult(
        partial=interrupted or lost is not None,
        command=options.to_json(),
        server=Server(target.url, status.manifest, status.limits),
        hardware=hardware(status),
        versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        started_at=started_at,
        points=points,
        skipped=skipped,
        search=search,
    )
    return Outcome(result, interrupted, lost)


def point(options: BenchOptions, level: Level, raw: Raw) -> Point:
    """The point's figures from what the generators reported."""
    window = steady_window(raw.records, level.load, raw.dry_s)
    records = mark_measured(raw.records, level.load, window)
    price = None if options.price_per_hour is None else (options.price_per_hour, options.output_price_ratio)
    slo = judge(records, level.load, options.slo) if options.slo else None
    good_requests = None if slo is None else slo.good_requests
    return Point(
        load=level.load,
        workload=level.task.workload,
        duration_s=raw.duration_s,
        window=window,
        partial=raw.stopped or raw.lost is not None,
        requests=records,
        summary=summarise(records, level.load, window, gpus=options.gpus, price=price, good_requests=good_requests),
        slo=slo,
        generator=raw.generator,
    )


def hardware(status: ServerStatus) -> Hardware:
    """Of this machine, and the GPU that the server's manifest names."""
    gpu = status.manifest.get("gpu")
    return Hardware(
        cpu=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=gpu if isinstance(gpu, str) and gpu != "cpu" else None,
        memory_bytes=psutil.virtual_memory().total,
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
