"""How a point is divided among generator processes."""

from collections.abc import Iterator
from dataclasses import dataclass

from mixtral_client.bench.arrivals import arrival_times
from mixtral_client.bench.result import ClosedLoad, Load, OpenLoad
from mixtral_client.bench.share import Arrival, Assignment
from mixtral_client.bench.workload import PromptSource


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured after the warm-up; exactly one of requests and duration_s. Warm-up: the first
    warmup_requests, or what is sent in the first warmup_s seconds."""

    requests: int | None = None
    duration_s: float | None = None
    warmup_requests: int = 0
    warmup_s: float = 0.0


def divide(
    load: Load, amount: Amount, source: PromptSource, ignore_eos: bool, origin: float, processes: int
) -> Iterator[Assignment]:
    if isinstance(load, ClosedLoad):
        processes = min(processes, load.concurrency)
        for number in range(processes):
            yield Assignment(
                origin,
                source,
                ignore_eos,
                workers=len(range(number, load.concurrency, processes)),
                first=number,
                step=processes,
                warmup_requests=amount.warmup_requests,
                warmup_s=amount.warmup_s,
                requests=_count(amount.requests, amount.warmup_requests, number, processes),
                duration_s=amount.duration_s,
            )
        return
    arrivals = open_arrivals(load, amount)
    for number in range(min(processes, len(arrivals))):
        yield Assignment(origin, source, ignore_eos, arrivals=tuple(arrivals[number::processes]))


def _count(requests: int | None, warmup_requests: int, number: int, processes: int) -> int | None:
    """How many of the measured indices fall to a process that takes every processes-th."""
    if requests is None:
        return None
    everything = range(number, warmup_requests + requests, processes)
    return len(everything) - len(range(number, warmup_requests, processes))


def open_arrivals(load: OpenLoad, amount: Amount) -> list[Arrival]:
    """All arrivals of an open loop. The measured amount begins with the first arrival after the warm-up."""
    arrivals: list[Arrival] = []
    begin_s: float | None = None
    measured = 0
    for index, at in enumerate(arrival_times(load)):
        warmup = index < amount.warmup_requests or at < amount.warmup_s
        if not warmup:
            begin_s = at if begin_s is None else begin_s
            if measured == amount.requests or (amount.duration_s is not None and at >= begin_s + amount.duration_s):
                break
            measured += 1
        arrivals.append(Arrival(index, at, warmup))
    return arrivals
