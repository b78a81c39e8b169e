"""Results of `mixtral bench` from a formula: no server, no clock, the same every time."""

from collections.abc import Sequence

import numpy as np

from mixtral_client.bench.result import (
    BenchResult,
    ClosedLoad,
    Failure,
    GeneratorUse,
    Hardware,
    Load,
    OpenLoad,
    Point,
    RequestRecord,
    Server,
    SloLimit,
    SloOutcome,
    Workload,
)
from mixtral_client.bench.statistics import summarise

SYNTHETIC = Workload("synthetic", "512", "128", 0.0, True, 0, None)


def record(
    index: int, begin: float, ttft: float, gap: float, tokens: int, *, measured: bool = True, failed: bool = False
) -> RequestRecord:
    """A request scheduled at `begin`, sent a millisecond later, with one token a response."""
    times = [begin + ttft + gap * i for i in range(tokens)]
    return RequestRecord(
        index=index,
        scheduled_s=begin,
        sent_s=begin + 0.001,
        first_s=times[0],
        end_s=times[-1],
        responses=[(at, 1) for at in times],
        input_tokens=512,
        output_tokens=tokens,
        finish_reason=None if failed else "length",
        error=Failure("UNAVAILABLE", "the queue is full") if failed else None,
        measured=measured,
    )


def point(
    load: Load,
    *,
    ttft: float = 0.05,
    gap: float = 0.01,
    tokens: int = 16,
    requests: int = 24,
    failed: int = 0,
    workload: Workload = SYNTHETIC,
    partial: bool = False,
    slo: SloOutcome | None = None,
) -> Point:
    """Requests at the load's rate (closed: ten a second), with times scattered around ttft and gap; the first two are
    warm-up."""
    random = np.random.default_rng(7)
    scatter = random.gamma(4.0, 0.25, (requests, 2))
    every = 1 / load.rate if isinstance(load, OpenLoad) else 0.1
    records = [
        record(
            i,
            i * every,
            ttft * scatter[i, 0],
            gap * scatter[i, 1],
            tokens,
            measured=i >= 2,
            failed=i >= requests - failed,
        )
        for i in range(requests)
    ]
    window = (2 * every, requests * every)
    return Point(
        load=load,
        workload=workload,
        duration_s=max(entry.end_s for entry in records),
        window=window,
        partial=partial,
        requests=records,
        summary=summarise(records, load, window, good_requests=None if slo is None else slo.good_requests),
        slo=slo,
        generator=GeneratorUse(1, 0.1, 0.3, 400, 0.001, False),
    )


def result(
    points: Sequence[Point], *, partial: bool = False, preset: str | None = None, precision: str = "int8"
) -> BenchResult:
    return BenchResult(
        partial=partial,
        command={"preset": preset, "seed": 0},
        server=Server(
            "127.0.0.1:8001",
            {
                "runtime": "pytorch",
                "precision": precision,
                "versions": {"torch": "2.13.0"},
                "model": {"num_hidden_layers": 4, "hidden_size": 256},
            },
            {"max_batch_size": 16},
        ),
        hardware=Hardware("Some Processor 3000", 2, None, 24 * 2**30),
        versions={"mixtral-triton": "0.1.0", "tritonclient": "2.73.0"},
        started_at="2026-11-21T03:00:00+00:00",
        points=list(points),
    )


def rising(rates: Sequence[float] = (0.5, 1, 2, 4, 8), *, factor: float = 1.0) -> list[Point]:
    """An open loop whose latencies grow with the rate and break away at the end."""
    points = []
    for rate in rates:
        strain = 1 / max(1 - rate / 9, 0.02)
        ttft = 0.04 * strain * factor
        limit = SloLimit("ttft", "p99", 0.5, ttft * 2, ttft * 2 <= 0.5)
        outcome = SloOutcome(limit.met, [limit, SloLimit("tpot", "p99", 0.05, 0.02, True)], 20)
        points.append(point(OpenLoad(rate, "poisson", 0), ttft=ttft, gap=0.008 * factor * strain**0.4, slo=outcome))
    return points


def workers(numbers: Sequence[int] = (1, 2, 4, 8), *, factor: float = 1.0) -> list[Point]:
    """A closed loop."""
    return [
        point(ClosedLoad(n), ttft=0.03 * n**0.5 * factor, gap=0.006 * n**0.6 * factor, tokens=32, requests=12 + 4 * n)
        for n in numbers
    ]
