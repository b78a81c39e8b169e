"""Results beside each other: ratios of points that carry the same load, and what else differs.

Two points are alike when they have the same load and the same workload but for the seeds. Others are never compared:
they are listed with what keeps them apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixtral_client.bench.picture_data import Run, load_text, workload_text
from mixtral_client.bench.result import BenchResult, Point, Summary
from mixtral_client.errors import MixtralClientError

# Lower is better for latencies, higher for rates.
LATENCIES = {"TTFT": "ttft_s", "TPOT": "tpot_s", "E2E": "e2e_s"}
RATES = {
    "requests/s": "requests_per_s",
    "output tokens/s": "output_tokens_per_s",
    "total tokens/s": "total_tokens_per_s",
    "goodput, requests/s": "goodput_requests_per_s",
}
_STATISTICS = ("p50", "p99")


class NothingComparable(MixtralClientError):
    """No point of one result carries the same load as one of another; the sentence says what differs."""


@dataclass(frozen=True, slots=True)
class Values:
    """One metric at one load: values in the order of the runs, and their ratios to the first run's. None: not measured
    there (or divided by zero)."""

    metric: str
    values: list[float | None]
    ratios: list[float | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """One load that the first run and at least one other carried. partial: names of the runs whose point was cut off.
    errors: measured requests that failed, by run; None where the run has no such point."""

    load: str
    workload: str
    metrics: list[Values]
    partial: list[str]
    errors: list[int | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not the same in all runs, with its value in each; None where a run does not have it."""

    setting: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A point that could not be compared, and why."""

    run: str
    point: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """runs: names, the first is what the others are divided by. partial: those that were cut off."""

    runs: list[str]
    partial: list[str]
    points: list[Pair]
    unmatched: list[Unmatched]
    differences: list[Difference]


def compare(runs: Sequence[Run]) -> Comparison:
    """Raises NothingComparable when the first run shares no load with any other."""
    base, *others = runs
    pairs, unmatched = [], []
    for point in base.result.points:
        found = [point, *(_find(point, other.result) for other in others)]
        if any(match is not None for match in found[1:]):
            pairs.append(_pair(runs, found))
        else:
            unmatched.append(Unmatched(base.name, _name(point), _nearest(point, others)))
    for other in others:
        for point in other.result.points:
            if _find(point, base.result) is None:
                unmatched.append(Unmatched(other.name, _name(point), _nearest(point, [base])))
    if not pairs:
        reasons = "; ".join(f"{entry.run} {entry.point}: {entry.reason}" for entry in unmatched[:2])
        raise NothingComparable(f"no load is the same in these results: {reasons or 'one of them has no points'}")
    partial = [run.name for run in runs if run.result.partial]
    return Comparison([run.name for run in runs], partial, pairs, unmatched, list(differences(runs)))


def differences(runs: Sequence[Run]) -> Iterator[Difference]:
    """Every option, fact of the server, hardware or version in which the results differ. Addresses and checksums of
    files do not count."""
    flat = [dict(_settings(run.result)) for run in runs]
    for name in dict.fromkeys(name for settings in flat for name in settings):
        values = [settings.get(name) for settings in flat]
        if any(value != values[0] for value in values):
            yield Difference(name, values)


def unlike(a: Point, b: Point) -> dict[str, tuple[Any, Any]]:
    """What keeps two points apart: both values by setting, empty when they carry the same load."""
    if a.load.mode != b.load.mode:
        return {"mode": (a.load.mode, b.load.mode)}  # their other fields have no counterparts
    left, right = (asdict(point.load) | asdict(point.workload) | {"seed": None} for point in (a, b))
    return {name: (left.get(name), right.get(name)) for name in {**left, **right} if left.get(name) != right.get(name)}


def _find(point: Point, result: BenchResult) -> Point | None:
    """The first point of that load; a search may have measured one twice."""
    return next((other for other in result.points if not unlike(point, other)), None)


def _nearest(point: Point, others: Sequence[Run]) -> str:
    """The point that differs in the fewest settings, in words."""
    candidates = [(unlike(point, other), run.name) for run in others for other in run.result.points]
    if not candidates:
        return "the others have no points"
    differing, name = min(candidates, key=lambda candidate: ("mode" in candidate[0], len(candidate[0])))
    return ", ".join(f"{key} is {ours} here and {theirs} in {name}" for key, (ours, theirs) in differing.items())


def _pair(runs: Sequence[Run], points: Sequence[Point | None]) -> Pair:
    first = points[0]
    assert first is not None
    rows = []
    for metric in _metrics(first.summary):
        values = [None if point is None else _metrics(point.summary)[metric] for point in points]
        if any(value is not None for value in values):
            rows.append(Values(metric, values, [_ratio(value, values[0]) for value in values]))
    return Pair(
        load_text(first.load),
        workload_text(first.workload),
        rows,
        [run.name for run, point in zip(runs, points, strict=True) if point is not None and point.partial],
        [None if point is None else sum(point.summary.errors.values()) for point in points],
    )


def _metrics(summary: Summary) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for label, name in LATENCIES.items():
        for statistic in _STATISTICS:
            found[f"{label} {statistic}, s"] = getattr(getattr(summary, name), statistic)
    return found | {label: getattr(summary, name) for label, name in RATES.items()}


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _name(point: Point) -> str:
    return f"{workload_text(point.workload)}, {load_text(point.load)}"


def _settings(result: BenchResult) -> Iterator[tuple[str, Any]]:
    manifest = {name: value for name, value in result.server.manifest.items() if name != "files"}
    yield from _flat("option", result.command)
    yield from _flat("server", manifest)
    yield from _flat("limit", result.server.limits)
    yield from _flat("hardware", asdict(result.hardware))
    yield from _flat("version", result.versions)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flat(f"{name}.{key}", entry)
    else:
        yield name, value
