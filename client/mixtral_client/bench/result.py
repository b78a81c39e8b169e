"""The result file of `mixtral bench`: what was asked, where it ran, every request, and the summary of each load level.

All times are seconds. Those of a request count from the start of its point.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from mixtral_client.bench.strict_json import JsonMismatch, from_json, to_json
from mixtral_client.errors import MixtralClientError

FORMAT_VERSION: Final = 1

INTERRUPTED: Final = "INTERRUPTED"  # the kind of a failure that the user's Ctrl-C made

Arrivals = Literal["poisson", "constant", "bursty"]


class ResultError(MixtralClientError):
    """A result file cannot be read; the sentence names the file and the place in it."""


@dataclass(frozen=True, slots=True)
class ClosedLoad:
    """`concurrency` workers, each of which sends its next request when the one before has ended."""

    concurrency: int
    mode: Literal["closed"] = "closed"


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """Requests sent at times drawn in advance, whether or not earlier ones have ended.

    rate: mean arrivals per second. burstiness: shape of the gamma distribution of the gaps; 1 is Poisson, below 1 is
    burstier; None for other arrivals.
    """

    rate: float
    arrivals: Arrivals
    seed: int
    burstiness: float | None = None
    mode: Literal["open"] = "open"


Load = ClosedLoad | OpenLoad


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no complete answer.

    kind: the code word at the head of the server's sentence (INVALID_ARGUMENT, UNAVAILABLE, INTERNAL, and so on;
    UNKNOWN without one), or the client's own UNREACHABLE, IDLE_TIMEOUT, PROTOCOL; CANCELLED, TIMEOUT and ERROR also
    stand for those finish reasons; INTERRUPTED for requests that were running when the run was stopped.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. scheduled_s: when it was to be sent (closed loop: when its worker became free). sent_s: when it was.
    first_s: arrival of the first response that brought tokens. end_s: final response or failure. responses: arrival and
    token count of every response that brought tokens. input_tokens, output_tokens: as the server counted, 0 if it never
    said. measured: it belongs to the point's distributions (after warm-up, see `statistics`)."""

    index: int
    scheduled_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    responses: list[tuple[float, int]]
    input_tokens: int
    output_tokens: int
    finish_reason: str | None
    error: Failure | None
    measured: bool


@dataclass(frozen=True, slots=True)
class Dist:
    """A distribution; all values None when it is empty (count 0). Percentiles by linear interpolation."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    count: int


@dataclass(frozen=True, slots=True)
class PerGpu:
    """Rates divided by the number of GPUs given with `--gpus`."""

    gpus: int
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Price per million tokens, in the unit of price_per_hour; None where no token of that kind was counted.

    output_price_ratio: how many times the price of a prompt token an output token is given.
    """

    price_per_hour: float
    output_price_ratio: float
    prompt: float | None
    output: float | None
    blended: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Distributions over the measured requests that completed, rates over the window; formulas in `statistics`."""

    ttft_s: Dist
    tpot_s: Dist
    gap_s: Dist
    e2e_s: Dist
    perceived_tokens_per_s: Dist
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    per_gpu: PerGpu | None
    completed: int
    errors: dict[str, int]
    goodput_requests_per_s: float | None
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class SloLimit:
    """One limit and how the point did. metric: ttft, tpot or e2e. statistic: mean, p50, p90, p95, p99 or max. value_s:
    what was measured, None when too many requests failed for the statistic to exist."""

    metric: str
    statistic: str
    limit_s: float
    value_s: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class SloOutcome:
    """met: every limit was met; measured requests that failed count as infinitely slow. good_requests: measured
    requests that completed and were each within every limit."""

    met: bool
    limits: list[SloLimit]
    good_requests: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What the requests of a point were.

    kind: "synthetic" (lengths below), "dolly-like" (drawn lengths) or "file". input_tokens, output_tokens: as asked
    for, for example "512" or "100-500"; None where the prompts decide.
    """

    kind: Literal["synthetic", "dolly-like", "file"]
    input_tokens: str | None
    output_tokens: str | None
    shared_prefix: float
    ignore_eos: bool
    seed: int
    file: str | None


@dataclass(frozen=True, slots=True)
class GeneratorUse:
    """How busy the load generator itself was. cpu_share: CPU time over wall time of its busiest process. lag_p99_s: how
    late its event loop ran timers. limited: either was so high that the figures may be the generator's own."""

    processes: int
    cpu_share: float
    cpu_s: float
    responses: int
    lag_p99_s: float
    limited: bool


@dataclass(frozen=True, slots=True)
class Point:
    """One load level. window: start and end of the steady state, over which rates are taken."""

    load: Load
    workload: Workload
    duration_s: float
    window: tuple[float, float]
    partial: bool
    requests: list[RequestRecord]
    summary: Summary
    slo: SloOutcome | None
    generator: GeneratorUse


@dataclass(frozen=True, slots=True)
class Skipped:
    """A point of the plan that was not run, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Search:
    """The search for the highest rate that meets the SLO. best_rate: None if not even `low` does."""

    low: float
    high: float
    tolerance: float
    best_rate: float | None


@dataclass(frozen=True, slots=True)
class Server:
    """The server as `engine_info` described it before the run."""

    url: str
    manifest: dict[str, Any]
    limits: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine on which the load generator ran; `gpu` is of the server's manifest, None for a CPU engine."""

    cpu: str
    cores: int
    gpu: str | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The whole file. partial: the run was interrupted or lost its server. command: the options as resolved, with
    `preset` (None without). started_at: ISO 8601 in UTC."""

    partial: bool
    command: dict[str, Any]
    server: Server
    hardware: Hardware
    versions: dict[str, str]
    started_at: str
    points: list[Point]
    skipped: list[Skipped] = field(default_factory=list)
    search: Search | None = None
    format_version: Literal[1] = FORMAT_VERSION


def write_result(result: BenchResult, path: Path) -> None:
    """Writes the file in one go, so that an interrupted write leaves no half file."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(to_json(result), allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_result(path: Path) -> BenchResult:
    """Raises ResultError for a file that cannot be read, is not of this format, or has anything too much or missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path} is not JSON: {error}") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise ResultError(f"{path} has format_version {version!r}, this program reads {FORMAT_VERSION}")
    try:
        return from_json(BenchResult, value, "result")
    except JsonMismatch as error:
        raise ResultError(f"{path}: {error}") from error
