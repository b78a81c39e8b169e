"""Triton's metric families in memory, with the rules whose breach takes the real server down."""

import threading
from bisect import bisect_left
from collections.abc import Sequence


class RecordedMetric:
    """value: of a counter or gauge. counts: of a histogram, per bucket, the last beyond the bounds."""

    def __init__(self, kind: str, bounds: Sequence[float]) -> None:
        self.kind = kind
        self.bounds = list(bounds)
        self.value = 0.0
        self.counts = [0] * (len(bounds) + 1)
        self.calls = 0
        self._busy = threading.Lock()

    def increment(self, amount: float) -> None:
        self._call("counter", amount >= 0)
        self.value += amount

    def set(self, value: float) -> None:
        self._call("gauge", True)
        self.value = value

    def observe(self, value: float) -> None:
        self._call("histogram", value >= 0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.value += value

    def _call(self, kind: str, allowed: bool) -> None:
        if self.kind != kind or not allowed or not self._busy.acquire(blocking=False):
            raise AssertionError(f"Triton would crash: {kind} call on a {self.kind}, allowed value: {allowed}")
        self.calls += 1
        self._busy.release()


class RecordedFamily:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.metrics: list[tuple[dict[str, str], RecordedMetric]] = []

    def Metric(self, labels: dict[str, str], buckets: Sequence[float] = ()) -> RecordedMetric:
        assert (self.kind == "histogram") == bool(buckets)
        metric = RecordedMetric(self.kind, buckets)
        self.metrics.append((labels, metric))
        return metric


class RecordedMetrics:
    """Stands where `pb_utils.MetricFamily` does: called, it makes a family."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self) -> None:
        self._families: dict[str, RecordedFamily] = {}

    def __call__(self, name: str, description: str, kind: str) -> RecordedFamily:
        assert name not in self._families
        assert description
        return self._families.setdefault(name, RecordedFamily(kind))

    def metric(self, name: str, **labels: str) -> RecordedMetric:
        """The one metric of a family whose labels include these."""
        found = [metric for own, metric in self._families[name].metrics if labels.items() <= own.items()]
        assert len(found) == 1, (name, labels)
        return found[0]

    def value(self, name: str, **labels: str) -> float:
        return self.metric(name, **labels).value

    def values(self, name: str) -> dict[str, float]:
        """By the value of the family's own label, those that are not zero."""
        metrics = self._families[name].metrics
        return {list(own.values())[-1]: metric.value for own, metric in metrics if metric.value}
