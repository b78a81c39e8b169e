"""Metrics of the Python backends on Triton's /metrics, which Prometheus reads.

A metric call crosses to the server process and back (10 to 50 us), so the paths that serve requests only add up plain
numbers here, and one thread hands them over a few times a second. Two facts of Triton 24.10 make the rest of the rules:
two metric calls of one process at the same time crash the server, and so does a value that it refuses (a counter
that goes down). A family that is not kept takes its metrics with it.
"""

import logging
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PUBLISH_S = 0.25
MAX_PENDING = 100_000  # observations that wait when Triton takes none; the oldest go first

log = logging.getLogger(__name__)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. label: its own label beside `model` and `version`, with all the values that it can have, so that
    each series is there from the start. buckets: upper bounds of a histogram, ascending, in the unit of the name."""

    name: str
    kind: Kind
    help: str
    label: str = ""
    values: tuple[str, ...] = ("",)
    buckets: tuple[float, ...] = ()


class Registry:
    """The metrics of one Triton model. `add`, `set` and `observe` may be called from any thread, cost about a
    microsecond and never raise; `publish` hands everything over."""

    def __init__(self, families: Iterable[Family], family_type: Any, labels: dict[str, str]) -> None:
        """family_type: Triton's `pb_utils.MetricFamily`. labels: of every series. Without its metrics a model still
        serves: what goes wrong here is logged."""
        self._kept: list[Any] = []
        self._metrics: dict[tuple[str, str], Any] = {}
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._gauges: dict[tuple[str, str], float] = {}
        self._published: dict[tuple[str, str], float] = {}
        self._observed: deque[tuple[tuple[str, str], float]] = deque(maxlen=MAX_PENDING)
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        try:
            for family in families:
                self._create(family, family_type, labels)
        except Exception:
            self._switch_off()

    def add(self, name: str, amount: float = 1, value: str = "") -> None:
        """Adds to a counter; value: of the family's own label."""
        with self._lock:
            self._counts[name, value] += amount

    def set(self, name: str, number: float) -> None:
        self._gauges[name, ""] = number

    def observe(self, name: str, number: float) -> None:
        self._observed.append(((name, ""), number))

    def publish(self) -> None:
        with self._publishing:
            try:
                self._publish()
            except Exception:
                self._switch_off()

    def _create(self, family: Family, family_type: Any, labels: dict[str, str]) -> None:
        kind = getattr(family_type, family.kind.name)
        kept = family_type(name=family.name, description=family.help, kind=kind)
        self._kept.append(kept)
        buckets = {"buckets": list(family.buckets)} if family.buckets else {}
        for value in family.values:
            own = {family.label: value} if family.label else {}
            self._metrics[family.name, value] = kept.Metric(labels=labels | own, **buckets)

    def _publish(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        for key, amount in counts.items():
            if amount > 0 and math.isfinite(amount) and (metric := self._metrics.get(key)):
                metric.increment(amount)
        for key, number in self._gauges.copy().items():
            if math.isfinite(number) and self._published.get(key) != number and (metric := self._metrics.get(key)):
                metric.set(number)
                self._published[key] = number
        for _ in range(len(self._observed)):
            key, number = self._observed.popleft()
            if number >= 0 and math.isfinite(number) and (metric := self._metrics.get(key)):
                metric.observe(number)

    def _switch_off(self) -> None:
        log.exception("this model goes on without metrics")
        self._metrics = {}


class GaugePublisher:
    """A thread that reads gauges and publishes what has changed, until `close`."""

    def __init__(self, registry: Registry, gauges: Mapping[str, Callable[[], float]]) -> None:
        """gauges: by family."""
        self._registry, self._gauges = registry, gauges
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for name, read in self._gauges.items():
                self._registry.set(name, read())
            self._registry.publish()
            if self._stop.wait(PUBLISH_S):
                return
