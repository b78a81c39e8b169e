"""What a run consists of: options, and the points they mean on a given server."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mixtral_client.bench.division import Amount
from mixtral_client.bench.prompts_file import read_prompts
from mixtral_client.bench.result import Arrivals, ClosedLoad, Load, OpenLoad, Skipped, Workload
from mixtral_client.bench.slo import Limit
from mixtral_client.bench.workload import (
    FILE_OUTPUT_TOKENS,
    DollyLikePrompts,
    FilePrompts,
    Lengths,
    PromptSource,
    SyntheticPrompts,
)
from mixtral_client.errors import MixtralClientError

DEFAULT_OUTPUT_PRICE_RATIO = 3.0
_OPEN_LOOP_S = 30.0
_OPEN_LOOP_WARMUP_S = 2.0
_LEAST_REQUESTS = 16
_REQUESTS_PER_WORKER = 4


class NothingToRun(MixtralClientError):
    """No point of the plan can be run on this server."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of prompts and outputs."""

    input_tokens: Lengths
    output_tokens: Lengths

    def __str__(self) -> str:
        return f"{self.input_tokens}/{self.output_tokens}"


def shape(input_tokens: int, output_tokens: int) -> Shape:
    """Of fixed lengths."""
    return Shape(Lengths(input_tokens, input_tokens), Lengths(output_tokens, output_tokens))


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """A run. Its points are all shapes, or the one other workload, times all loads.

    Load: one of concurrency (closed loop; "max" is twice the server's batch size, so that a request always waits when
    another ends), rates (open loop, per second) and search (lowest and highest rate to look at, needs slo).
    Workload: shapes (synthetic), dolly_like, or prompts (a file), in which case output_tokens may limit the outputs.
    ignore_eos: None is on for synthetic workloads and off for files. scale_lengths: factor on synthetic lengths.
    requests, duration_s: of each point after warm-up, at most one of them. Neither: in a closed loop 4 requests per
    worker and at least 16, in an open loop 30 s. warmup_requests, warmup_s: at most one of them. Neither: one request
    per worker in a closed loop, 2 s in an open loop.
    """

    preset: str | None = None
    concurrency: tuple[int | Literal["max"], ...] = ()
    rates: tuple[float, ...] = ()
    search: tuple[float, float] | None = None
    search_tolerance: float = 0.1
    arrivals: Arrivals = "poisson"
    burstiness: float | None = None
    seed: int = 0
    shapes: tuple[Shape, ...] = ()
    dolly_like: bool = False
    prompts: Path | None = None
    output_tokens: Lengths | None = None
    shared_prefix: float = 0.0
    ignore_eos: bool | None = None
    scale_lengths: float = 1.0
    requests: int | None = None
    duration_s: float | None = None
    warmup_requests: int | None = None
    warmup_s: float | None = None
    slo: tuple[Limit, ...] = ()
    gpus: int | None = None
    price_per_hour: float | None = None
    output_price_ratio: float = DEFAULT_OUTPUT_PRICE_RATIO
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The options as plain values, for the result file."""
        values = {name: getattr(self, name) for name in self.__slots__}
        texts = {
            "shapes": [str(entry) for entry in self.shapes],
            "slo": [str(limit) for limit in self.slo],
            "prompts": None if self.prompts is None else self.prompts.name,
            "output_tokens": None if self.output_tokens is None else str(self.output_tokens),
        }
        return values | texts


@dataclass(frozen=True, slots=True)
class Task:
    """A workload that can be sent: its description, where its prompts come from, and the mean output for planning."""

    workload: Workload
    source: PromptSource
    mean_output_tokens: float

    def __str__(self) -> str:
        workload = self.workload
        if workload.kind == "synthetic":
            return f"{workload.input_tokens}/{workload.output_tokens}"
        return workload.file or workload.kind


@dataclass(frozen=True, slots=True)
class Level:
    """A point to be measured."""

    task: Task
    load: Load
    amount: Amount

    def __str__(self) -> str:
        return f"{self.task}, {load_name(self.load)}"


def load_name(load: Load) -> str:
    """For example "concurrency 4" or "rate 2, poisson"."""
    if isinstance(load, ClosedLoad):
        return f"concurrency {load.concurrency}"
    return f"rate {load.rate:.4g}, {load.arrivals}"


def plan_tasks(
    options: BenchOptions, manifest: Mapping[str, Any], limits: Mapping[str, Any]
) -> tuple[list[Task], list[Skipped]]:
    """The workloads that the server can take, and those it cannot. Raises NothingToRun when none is left, and
    DataFileError."""
    if options.prompts is not None:
        return [_file_task(options, options.prompts)], []
    vocab_size = _vocab_size(manifest)
    if options.dolly_like:
        candidates = [_dolly_like_task(options, vocab_size)]
    else:
        candidates = [_synthetic_task(options, entry, vocab_size) for entry in options.shapes]
    tasks: list[Task] = []
    skipped: list[Skipped] = []
    for task in candidates:
        reason = _too_long(task, limits, options.scale_lengths)
        if reason is None:
            tasks.append(task)
        else:
            skipped.append(Skipped(str(task), reason))
    if not tasks:
        raise NothingToRun(f"nothing fits the server: {'; '.join(f'{s.what}: {s.reason}' for s in skipped)}")
    return tasks, skipped


def plan_loads(options: BenchOptions, limits: Mapping[str, Any]) -> list[Load]:
    """The loads in the order given; for a search only its bounds."""
    rates = options.rates if options.search is None else options.search
    if rates:
        return [open_load(options, rate) for rate in rates]
    return [ClosedLoad(_most(limits) if workers == "max" else workers) for workers in options.concurrency]


def open_load(options: BenchOptions, rate: float) -> OpenLoad:
    return OpenLoad(rate, options.arrivals, options.seed, options.burstiness)


def amount(options: BenchOptions, load: Load) -> Amount:
    """How much is sent at this load; the defaults are those of `BenchOptions`."""
    requests, duration_s = options.requests, options.duration_s
    warmup_requests, warmup_s = options.warmup_requests, options.warmup_s
    if requests is None and duration_s is None:
        if isinstance(load, ClosedLoad):
            requests = max(_LEAST_REQUESTS, _REQUESTS_PER_WORKER * load.concurrency)
        else:
            duration_s = _OPEN_LOOP_S
    if warmup_requests is None and warmup_s is None:
        if isinstance(load, ClosedLoad):
            warmup_requests = load.concurrency
        else:
            warmup_s = _OPEN_LOOP_WARMUP_S
    return Amount(requests, duration_s, warmup_requests or 0, warmup_s or 0.0)


def with_shapes(options: BenchOptions, input_tokens: Lengths | None, output_tokens: Lengths | None) -> BenchOptions:
    """The options with other lengths for synthetic prompts; a length that is None stays as it is."""
    base: Sequence[Shape] = options.shapes or [shape(512, 128)]
    shapes = dict.fromkeys(
        Shape(input_tokens or entry.input_tokens, output_tokens or entry.output_tokens) for entry in base
    )
    return replace(options, shapes=tuple(shapes), dolly_like=False, prompts=None)


def _most(limits: Mapping[str, Any]) -> int:
    batch = limits.get("max_batch_size")
    if not isinstance(batch, int):
        raise NothingToRun("the server does not tell its max_batch_size, so `max` has no meaning; give a number")
    queue = limits.get("max_queue_size")
    return batch + (min(batch, queue) if isinstance(queue, int) else batch)


def _vocab_size(manifest: Mapping[str, Any]) -> int:
    size = (manifest.get("model") or {}).get("vocab_size")
    if not isinstance(size, int):
        raise NothingToRun("the server does not tell its vocabulary size, so token ids cannot be drawn; use --prompts")
    return size


def _workload(options: BenchOptions, kind: Literal["synthetic", "dolly-like", "file"]) -> Workload:
    ignore_eos = kind != "file" if options.ignore_eos is None else options.ignore_eos
    return Workload(kind, None, None, options.shared_prefix, ignore_eos, options.seed, None)


def _synthetic_task(options: BenchOptions, entry: Shape, vocab_size: int) -> Task:
    inputs, outputs = (lengths.scaled(options.scale_lengths) for lengths in (entry.input_tokens, entry.output_tokens))
    described = replace(_workload(options, "synthetic"), input_tokens=str(inputs), output_tokens=str(outputs))
    source = SyntheticPrompts(inputs, outputs, options.shared_prefix, options.seed, vocab_size)
    return Task(described, source, (outputs.low + outputs.high) / 2)


def _dolly_like_task(options: BenchOptions, vocab_size: int) -> Task:
    source = DollyLikePrompts(options.shared_prefix, options.seed, vocab_size, options.scale_lengths)
    return Task(_workload(options, "dolly-like"), source, source.MEAN_OUTPUT * options.scale_lengths)


def _file_task(options: BenchOptions, path: Path) -> Task:
    outputs = options.output_tokens or Lengths(FILE_OUTPUT_TOKENS, FILE_OUTPUT_TOKENS)
    described = replace(_workload(options, "file"), output_tokens=str(outputs), file=path.name, shared_prefix=0.0)
    return Task(described, FilePrompts(read_prompts(path), outputs, options.seed), (outputs.low + outputs.high) / 2)


def _too_long(task: Task, limits: Mapping[str, Any], scale: float) -> str | None:
    """Why the server cannot take the task's longest requests, None if it can or does not say."""
    source = task.source
    if isinstance(source, DollyLikePrompts):
        inputs, outputs = source.longest()
    elif isinstance(source, SyntheticPrompts):
        inputs, outputs = source.input_tokens.high, source.output_tokens.high
    else:
        return None
    totals = {"prompt": inputs, "prompt and output": inputs + outputs}
    bounds = {"prompt": limits.get("max_input_len"), "prompt and output": limits.get("max_seq_len")}
    for what, limit in bounds.items():
        if isinstance(limit, int) and totals[what] > limit:
            fraction = min(most / totals[name] for name, most in bounds.items() if isinstance(most, int))
            fitting = math.floor(scale * fraction * 99) / 100  # a percent less, for lengths that round up
            return f"{what} would be {totals[what]} tokens, the limit is {limit}; --scale-lengths {fitting:g} fits"
    return None
