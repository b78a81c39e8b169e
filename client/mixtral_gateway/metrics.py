"""What /metrics tells. Labels have few values, all from this program and none from requests."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics(Collector):
    """Of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mixtral_gateway_requests", "Requests, by route and HTTP status; 499: the client left.",
            ["route", "status"], registry=registry,
        )  # fmt: skip
        self.running = Gauge("mixtral_gateway_running", "Generations under way, as requests.", registry=registry)
        self.events = 0  # a plain number: a Counter costs a lock for each chunk
        registry.register(self)
        self.tokens = Counter(
            "mixtral_gateway_tokens", "Tokens of finished requests, by direction.", ["direction"], registry=registry
        )
        self.first = Histogram(
            "mixtral_gateway_first_chunk_seconds", "From a request's arrival to its first chunk.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.duration = Histogram(
            "mixtral_gateway_request_seconds", "From a request's arrival to its end, by route.",
            ["route"], registry=registry, buckets=_SECONDS,
        )  # fmt: skip

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        yield CounterMetricFamily("mixtral_gateway_events", "Chunks read from the model server.", self.events)

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
