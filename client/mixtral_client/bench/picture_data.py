"""What the pictures of results show, as plain numbers: no drawing here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixtral_client.bench.result import BenchResult, ClosedLoad, Dist, Load, Point, RequestRecord, Workload
from mixtral_client.bench.statistics import tpot_s, ttft_s

Mode = Literal["closed", "open"]
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("p50", "p99")
MOST_CURVES = 6  # more cannot be told apart
MOST_ROWS = 40
LEAST_ROWS = 8
_MOST_SPANS = 12  # of a median request, that a timeline is long; in a longer one the responses cannot be told apart
_MOST_STEPS = 400  # of a distribution's curve; finer than a picture's pixels


@dataclass(frozen=True, slots=True)
class Run:
    """One result file. name: tells it from others in one picture, empty when it is alone."""

    name: str
    result: BenchResult


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture: x is the load, y in the metric's unit. group: lines of one run and workload share it, and
    with it a colour. partial: for each value, whether its point was cut off."""

    label: str
    group: int
    kind: str
    x: list[float]
    y: list[float]
    partial: list[bool]


@dataclass(frozen=True, slots=True)
class Curve:
    """A distribution: its percentile[i], 0 to 100, is x[i], interpolated as in `statistics`. marks: p50, p90, p99."""

    label: str
    x: list[float]
    percentile: list[float]
    marks: dict[int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a timeline, in seconds of its point. responses: when responses with tokens came."""

    scheduled_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    responses: list[float]
    failed: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """The first rows of the measured requests of a point; of: how many were measured."""

    title: str
    rows: list[Row]
    of: int
    window: tuple[float, float]


def load_value(load: Load) -> float:
    """The load's place on the axis: workers or requests per second."""
    return float(load.concurrency) if isinstance(load, ClosedLoad) else load.rate


def load_text(load: Load) -> str:
    if isinstance(load, ClosedLoad):
        return f"{load.concurrency} at once"
    return f"{load.rate:.4g} requests/s"


def workload_text(workload: Workload) -> str:
    """For example "512 in, 128 out", "dolly-like" or the file's name."""
    if workload.kind == "synthetic":
        return f"{workload.input_tokens} in, {workload.output_tokens} out"
    return workload.file or workload.kind


def modes(runs: Sequence[Run]) -> list[Mode]:
    """Those that occur, closed first."""
    found = {point.load.mode for run in runs for point in run.result.points}
    return [mode for mode in ("closed", "open") if mode in found]


def latency_lines(runs: Sequence[Run], mode: Mode, metric: str) -> list[Line]:
    """Median and 99th percentile of one of LATENCIES, in seconds, against the load."""
    lines = []
    for group, label, points in _groups(runs, mode):
        for statistic in STATISTICS:
            found = [(point, getattr(_dist(point, metric), statistic)) for point in points]
            lines.append(_line(label, group, statistic, [(point, y) for point, y in found if y is not None]))
    return [line for line in lines if line.x]


def throughput_lines(runs: Sequence[Run], mode: Mode, metric: str) -> list[Line]:
    """A rate of the summary, such as "output_tokens_per_s", against the load; points without it are left out."""
    lines = []
    for group, label, points in _groups(runs, mode):
        found = [(point, getattr(point.summary, metric)) for point in points]
        lines.append(_line(label, group, metric, [(point, y) for point, y in found if y is not None]))
    return [line for line in lines if line.x]


def arrival_lines(runs: Sequence[Run]) -> list[Line]:
    """Requests per second that really arrived in the window of each point of an open loop: at few arrivals not quite
    the rate that was asked for."""
    lines = []
    for group, label, points in _groups(runs, "open"):
        found = [(point, y) for point in points if (y := _arrived(point)) is not None]
        lines.append(_line(label, group, "arrived", found))
    return [line for line in lines if line.x]


def has_line(runs: Sequence[Run], mode: Mode) -> bool:
    """Whether any run has two loads of this mode, so that a line can be drawn."""
    return any(len({load_value(point.load) for point in points}) > 1 for _, _, points in _groups(runs, mode))


def limits(runs: Sequence[Run], metric: str) -> list[tuple[str, float]]:
    """(statistic, seconds) of the SLO on one of LATENCIES, each once."""
    name = metric.removesuffix("_s")
    found = {
        (limit.statistic, limit.limit_s)
        for run in runs
        for point in run.result.points
        if point.slo is not None
        for limit in point.slo.limits
        if limit.metric == name
    }
    return sorted(found)


def curves(runs: Sequence[Run], metric: Literal["ttft_s", "tpot_s"]) -> list[Curve]:
    """The distribution over the measured requests that completed, of each point, at most MOST_CURVES of them."""
    points = [(run, point) for run in runs for point in run.result.points if any(_values(point, metric))]
    return [_curve(_point_label(run, point), _values(point, metric)) for run, point in spread(points, MOST_CURVES)]


def spread(items: Sequence[tuple[Run, Point]], most: int) -> list[tuple[Run, Point]]:
    """At most `most` of them, evenly over the whole, first and last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def timeline(point: Point, most: int = MOST_ROWS) -> Timeline:
    """The first measured requests in the order of their index: `most` of them, or those that began within _MOST_SPANS
    median requests, but then LEAST_ROWS at least."""
    measured = sorted((record for record in point.requests if record.measured), key=lambda record: record.index)
    title = f"{workload_text(point.workload)}, {load_text(point.load)}"
    if measured:
        span = _MOST_SPANS * float(np.median([record.end_s - record.scheduled_s for record in measured]))
        soon = sum(record.scheduled_s <= measured[0].scheduled_s + span for record in measured)
        most = min(most, max(LEAST_ROWS, soon))
    return Timeline(title, [_row(record) for record in measured[:most]], len(measured), point.window)


def _groups(runs: Sequence[Run], mode: Mode) -> Iterator[tuple[int, str, list[Point]]]:
    """(number, label, points by rising load) of every workload of every run. Seeds do not make another workload."""
    several = len({workload_text(point.workload) for run in runs for point in run.result.points}) > 1
    group = 0
    for run in runs:
        points = [point for point in run.result.points if point.load.mode == mode]
        for workload in dict.fromkeys(workload_text(point.workload) for point in points):
            own = [point for point in points if workload_text(point.workload) == workload]
            parts = [run.name, workload if several else ""]
            yield group, ", ".join(filter(None, parts)), sorted(own, key=lambda point: load_value(point.load))
            group += 1


def _line(label: str, group: int, kind: str, found: Sequence[tuple[Point, float]]) -> Line:
    return Line(
        label,
        group,
        kind,
        [load_value(point.load) for point, _ in found],
        [y for _, y in found],
        [point.partial for point, _ in found],
    )


def _arrived(point: Point) -> float | None:
    start, end = point.window
    gaps = sum(start <= record.scheduled_s <= end for record in point.requests) - 1
    return gaps / (end - start) if gaps > 0 and end > start else None


def _dist(point: Point, metric: str) -> Dist:
    dist: Dist = getattr(point.summary, metric)
    return dist


def _values(point: Point, metric: str) -> list[float]:
    done = [record for record in point.requests if record.measured and record.error is None]
    found = (ttft_s(record, point.load) if metric == "ttft_s" else tpot_s(record) for record in done)
    return [value for value in found if value is not None]


def _curve(label: str, values: Sequence[float]) -> Curve:
    percentiles = np.linspace(0, 100, max(2, min(len(values), _MOST_STEPS)))
    marks = {percent: float(np.percentile(values, percent)) for percent in (50, 90, 99)}
    return Curve(label, np.percentile(values, percentiles).tolist(), percentiles.tolist(), marks)


def _point_label(run: Run, point: Point) -> str:
    several = len({workload_text(other.workload) for other in run.result.points}) > 1
    parts = [run.name, workload_text(point.workload) if several else "", load_text(point.load)]
    return ", ".join(filter(None, parts)) + (" (partial)" if point.partial else "")


def _row(record: RequestRecord) -> Row:
    return Row(
        record.scheduled_s,
        record.sent_s,
        record.first_s,
        record.end_s,
        [at for at, _ in record.responses],
        record.error is not None,
    )
