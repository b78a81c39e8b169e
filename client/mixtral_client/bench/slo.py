"""Limits on latency: parsing, and whether a point and each of its requests meet them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mixtral_client.bench.result import Load, RequestRecord, SloLimit, SloOutcome
from mixtral_client.bench.statistics import e2e_s, tpot_s, ttft_s

METRICS = ("ttft", "tpot", "e2e")
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
STATISTICS = ("mean", *PERCENTILES)
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LIMIT = re.compile(r"([a-z0-9]+)_([a-z0-9]+)=([0-9]*\.?[0-9]+)(us|ms|s)")


@dataclass(frozen=True, slots=True)
class Limit:
    """For example ttft_p99=200ms: the 99th percentile of TTFT must be at most 0.2 s."""

    metric: str
    statistic: str
    limit_s: float

    def __str__(self) -> str:
        return f"{self.metric}_{self.statistic}={self.limit_s * 1000:g}ms"


def parse_slo(text: str) -> tuple[Limit, ...]:
    """Reads "ttft_p99=200ms,tpot_p99=20ms". Raises ValueError with one sentence that names what is wrong."""
    limits: list[Limit] = []
    for part in text.split(","):
        match = _LIMIT.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a limit such as ttft_p99=200ms (units us, ms, s)")
        metric, statistic, number, unit = match.groups()
        if metric not in METRICS:
            raise ValueError(f"{metric!r} in {part.strip()!r} is not one of {', '.join(METRICS)}")
        if statistic not in STATISTICS:
            raise ValueError(f"{statistic!r} in {part.strip()!r} is not one of {', '.join(STATISTICS)}")
        limit_s = float(number) * _UNITS_S[unit]
        if limit_s <= 0:
            raise ValueError(f"the limit of {part.strip()!r} must be above 0")
        if any((limit.metric, limit.statistic) == (metric, statistic) for limit in limits):
            raise ValueError(f"{metric}_{statistic} has two limits")
        limits.append(Limit(metric, statistic, limit_s))
    return tuple(limits)


def within(record: RequestRecord, load: Load, limits: Sequence[Limit]) -> bool:
    """Whether a request completed and each limited metric of its own is within the limit, whatever the limit's
    statistic. A metric that a request does not have, such as the TPOT of a single response, is within."""
    if record.error is not None:
        return False
    values = (_metric(record, load, limit.metric) for limit in limits)
    return all(value is None or value <= limit.limit_s for value, limit in zip(values, limits, strict=True))


def judge(records: Sequence[RequestRecord], load: Load, limits: Sequence[Limit]) -> SloOutcome:
    """How the measured requests did. A failed one counts as infinitely slow, so that refusing requests cannot help; a
    point in which nothing was measured meets nothing."""
    measured = [record for record in records if record.measured]
    outcomes = []
    for limit in limits:
        values = [math.inf if r.error is not None else _metric(r, load, limit.metric) for r in measured]
        value = _statistic([value for value in values if value is not None], limit.statistic)
        # Without any value there is nothing too slow, provided that something completed.
        completed = any(record.error is None for record in measured)
        met = value <= limit.limit_s if value is not None else completed
        shown = value if value is not None and math.isfinite(value) else None
        outcomes.append(SloLimit(limit.metric, limit.statistic, limit.limit_s, shown, met))
    good = sum(within(record, load, limits) for record in measured)
    return SloOutcome(met=all(outcome.met for outcome in outcomes), limits=outcomes, good_requests=good)


def _metric(record: RequestRecord, load: Load, metric: str) -> float | None:
    if metric == "ttft":
        return ttft_s(record, load)
    return tpot_s(record) if metric == "tpot" else e2e_s(record, load)


def _statistic(values: Sequence[float], statistic: str) -> float | None:
    """None without values; infinite if an infinite value takes part in it."""
    if not values:
        return None
    if statistic == "mean":
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf
    ranks = sorted(values)
    position = PERCENTILES[statistic] / 100 * (len(ranks) - 1)
    if not math.isfinite(ranks[math.ceil(position)]):
        return math.inf
    low, high = ranks[math.floor(position)], ranks[math.ceil(position)]
    return low + (high - low) * (position - math.floor(position))
