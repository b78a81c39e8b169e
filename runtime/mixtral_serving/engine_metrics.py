"""What is measured of requests and engine, and when. `docs/metrics.md` says what each is good for."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mixtral_runtime.engine import EngineStats, FinishReason, Output
from mixtral_runtime.errors import Internal, InvalidArgument, MixtralError, Unavailable
from mixtral_serving.metrics import PUBLISH_S, Family, Kind, Registry

TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60)
TPOT_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
CODES = tuple(error.code for error in (InvalidArgument, Unavailable, Internal))
REASONS = tuple(reason.value for reason in FinishReason)

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
REJECTED = Family("mixtral_requests_rejected_total", COUNTER, "Requests refused before any model work.", "code", CODES)
FAMILIES = (
    REJECTED,
    Family("mixtral_requests_accepted_total", COUNTER, "Requests that the engine took."),
    Family("mixtral_requests_finished_total", COUNTER, "Requests that ended, by reason.", "reason", REASONS),
    Family("mixtral_prompt_tokens_total", COUNTER, "Prompt tokens of answered requests."),
    Family("mixtral_output_tokens_total", COUNTER, "Tokens sent."),
    Family("mixtral_engine_steps_total", COUNTER, "Steps of the engine."),
    Family("mixtral_preemptions_total", COUNTER, "Sequences put back to free their KV blocks."),
    Family("mixtral_prefix_blocks_reused_total", COUNTER, "KV blocks of prompts found in the cache."),
    Family("mixtral_prefix_blocks_missed_total", COUNTER, "KV blocks of prompts that had to be computed."),
    Family("mixtral_requests_running", GAUGE, "Sequences in the batch now."),
    Family("mixtral_requests_waiting", GAUGE, "Requests in the engine's queue now."),
    Family("mixtral_batch_size_limit", GAUGE, "Sequences that fit into the batch."),
    Family("mixtral_kv_cache_blocks_used", GAUGE, "KV cache blocks in use now."),
    Family("mixtral_kv_cache_blocks_free", GAUGE, "KV cache blocks free now."),
    Family("mixtral_kv_cache_blocks_limit", GAUGE, "KV cache blocks there are."),
    Family("mixtral_kv_cache_block_tokens", GAUGE, "Tokens in one KV cache block."),
    Family("mixtral_streams_live", GAUGE, "Requests that Triton still waits for."),
    Family("mixtral_batch_size", HISTOGRAM, "Sequences in the batch while it works.", buckets=SEQUENCES),
    Family("mixtral_time_to_first_token_seconds", HISTOGRAM, "Submission to first token.", buckets=TTFT_S),
    Family("mixtral_time_per_output_token_seconds", HISTOGRAM, "Mean time of the later tokens.", buckets=TPOT_S),
    Family("mixtral_request_queue_seconds", HISTOGRAM, "Submission to first scheduling.", buckets=QUEUE_S),
    Family("mixtral_request_duration_seconds", HISTOGRAM, "Submission to last response.", buckets=DURATION_S),
    Family("mixtral_request_prompt_tokens", HISTOGRAM, "Prompt tokens of a request.", buckets=TOKENS),
    Family("mixtral_request_output_tokens", HISTOGRAM, "Tokens sent to a request.", buckets=TOKENS),
)

log = logging.getLogger(__name__)


def count_rejection(registry: Registry, error: MixtralError) -> None:
    registry.add(REJECTED.name, value=error.code)


@dataclass(slots=True)
class Timeline:
    """When one request was submitted, began and went on, on the monotonic clock. stop_reason: why it was asked to stop;
    the engine itself calls each of these `cancelled`."""

    submitted: float = field(default_factory=time.monotonic)
    first: float | None = None
    first_tokens: int = 0
    last: float = 0.0
    tokens: int = 0
    stop_reason: FinishReason = FinishReason.CANCELLED


class EngineMetrics:
    """The measurements of the engine model. The methods cost microseconds and belong to the serving threads; a thread
    of this object reads the engine's statistics and publishes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._before: EngineStats | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def accepted(self) -> None:
        self._registry.add("mixtral_requests_accepted_total")

    def rejected(self, error: MixtralError) -> None:
        count_rejection(self._registry, error)

    def answered(self, timeline: Timeline, output: Output, streaming: bool) -> None:
        """After an output was sent. Without streaming there is no first token to time: all come at once."""
        try:
            self._answered(timeline, output, streaming)
        except Exception:
            log.exception("a response could not be measured")

    def _answered(self, timeline: Timeline, output: Output, streaming: bool) -> None:
        registry, now, count = self._registry, time.monotonic(), len(output.token_ids)
        if output.queued_s is not None:
            registry.observe("mixtral_request_queue_seconds", output.queued_s)
        if count:
            registry.add("mixtral_output_tokens_total", count)
            timeline.tokens += count
            timeline.last = now
            if timeline.first is None:
                timeline.first, timeline.first_tokens = now, count
                registry.add("mixtral_prompt_tokens_total", output.counts.input_tokens)
                if streaming:
                    registry.observe("mixtral_time_to_first_token_seconds", now - timeline.submitted)
        if output.final:
            self._finished(timeline, output, now)

    def start(self, stats: Callable[[], EngineStats], live: Callable[[], int]) -> None:
        """live: how many requests are being answered. What the engine did so far (its warm-up) is not counted."""
        self._thread = threading.Thread(target=self._run, args=(stats, live), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def read(self, stats: EngineStats, live: int) -> None:
        """Takes over a snapshot of the engine: gauges as they are, counters by what came since the last one."""
        registry, before = self._registry, self._before or stats
        registry.set("mixtral_requests_running", stats.active)
        registry.set("mixtral_requests_waiting", stats.queued)
        registry.set("mixtral_batch_size_limit", stats.max_batch_size)
        registry.set("mixtral_kv_cache_blocks_used", stats.kv_blocks_total - stats.kv_blocks_free)
        registry.set("mixtral_kv_cache_blocks_free", stats.kv_blocks_free)
        registry.set("mixtral_kv_cache_blocks_limit", stats.kv_blocks_total)
        registry.set("mixtral_kv_cache_block_tokens", stats.tokens_per_block)
        registry.set("mixtral_streams_live", live)
        registry.add("mixtral_engine_steps_total", stats.steps - before.steps)
        registry.add("mixtral_preemptions_total", stats.preemptions - before.preemptions)
        registry.add("mixtral_prefix_blocks_reused_total", stats.prefix_blocks_reused - before.prefix_blocks_reused)
        registry.add("mixtral_prefix_blocks_missed_total", stats.prefix_blocks_missed - before.prefix_blocks_missed)
        if stats.active and stats.steps > before.steps:
            registry.observe("mixtral_batch_size", stats.active)
        self._before = stats

    def _finished(self, timeline: Timeline, output: Output, now: float) -> None:
        registry, reason = self._registry, output.finish_reason or FinishReason.ERROR
        if reason is FinishReason.CANCELLED:
            reason = timeline.stop_reason
        registry.add("mixtral_requests_finished_total", value=reason.value)
        registry.observe("mixtral_request_duration_seconds", now - timeline.submitted)
        if timeline.first is None:
            return
        registry.observe("mixtral_request_prompt_tokens", output.counts.input_tokens)
        registry.observe("mixtral_request_output_tokens", timeline.tokens)
        if (later := timeline.tokens - timeline.first_tokens) > 0:
            registry.observe("mixtral_time_per_output_token_seconds", (timeline.last - timeline.first) / later)

    def _run(self, stats: Callable[[], EngineStats], live: Callable[[], int]) -> None:
        while True:
            try:
                self.read(stats(), live())
            except Exception:
                log.exception("the engine's statistics could not be read")
            self._registry.publish()
            if self._stop.wait(PUBLISH_S):
                return
