"""What a person sees of a run: progress while it goes on, a table at the end."""

import statistics
import time
from collections.abc import Callable, Sequence

from mixtral_client.bench.plan import Level, load_name
from mixtral_client.bench.result import BenchResult, Dist, Point, Skipped, Workload
from mixtral_client.bench.runner import CPU_LIMIT, Live

_PROGRESS_S = 1.0


class Progress:
    """Writes a line for each second of a point, and what is worth knowing between points."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._next = 0.0
        self._last = (0.0, 0)  # (elapsed seconds, tokens) of the line before

    def skipped(self, skipped: Skipped) -> None:
        self._write(f"skipped {skipped.what}: {skipped.reason}")

    def begins(self, level: Level) -> None:
        self._write(f"{level}")
        self._next = time.monotonic() + _PROGRESS_S
        self._last = (0.0, 0)

    def runs(self, live: Live) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PROGRESS_S
        then_s, then_tokens = self._last
        self._last = (live.elapsed_s, live.tokens)
        rate = (live.tokens - then_tokens) / (live.elapsed_s - then_s)
        done = [record for record in live.ended if record.error is None]
        ttfts = [record.first_s - record.sent_s for record in done if record.first_s is not None]
        median = f", TTFT p50 {_ms(statistics.median(ttfts))} ms" if ttfts else ""
        self._write(
            f"  {live.elapsed_s:.0f} s: {live.in_flight} in flight, {len(done)} done, "
            f"{len(live.ended) - len(done)} errors, {rate:.0f} tokens/s{median}"
        )

    def ended(self, level: Level, point: Point) -> None:
        use = point.generator
        if use.limited:
            advice = (
                f"used {use.cpu_share:.0%} of a core, give it more --processes"
                if use.cpu_share > CPU_LIMIT
                else f"was {_ms(use.lag_p99_s)} ms late at its own timers, run it on a machine with idle cores"
            )
            self._write(f"warning: figures of {level} may be those of the load generator: it {advice}")
        if point.summary.errors:
            first = next(r.error for r in point.requests if r.measured and r.error is not None)
            self._write(f"warning: {_counts(point)} of {level} failed, the first with {first.kind}: {first.text}")


def table(result: BenchResult) -> str:
    """One row a point, aligned; then the search, costs and rates per GPU where asked for."""
    rows = [_HEAD, *(_row(point) for point in result.points)]
    if not any(point.slo for point in result.points):
        rows = [row[:-2] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join([*lines, *_notes(result)])


_HEAD = (
    "point",
    "req/s",
    "out tok/s",
    "all tok/s",
    "TTFT p50",
    "p99 ms",
    "TPOT p50",
    "p99 ms",
    "tok/s/user",
    "E2E p50",
    "p99 s",
    "errors",
    "good/s",
    "SLO",
)


def _row(point: Point) -> tuple[str, ...]:
    summary = point.summary
    return (
        f"{point_name(point)}{' (partial)' if point.partial else ''}",
        f"{summary.requests_per_s:.3g}",
        f"{summary.output_tokens_per_s:.1f}",
        f"{summary.total_tokens_per_s:.1f}",
        *_pair(summary.ttft_s, 1e3),
        *_pair(summary.tpot_s, 1e3),
        _number(summary.perceived_tokens_per_s.p50),
        *_pair(summary.e2e_s, 1),
        str(sum(summary.errors.values())),
        _number(summary.goodput_requests_per_s),
        "" if point.slo is None else "met" if point.slo.met else "missed",
    )


def point_name(point: Point) -> str:
    """For example "512/128, concurrency 4"."""
    return f"{_workload_name(point.workload)}, {load_name(point.load)}"


def _workload_name(workload: Workload) -> str:
    if workload.kind == "synthetic":
        return f"{workload.input_tokens}/{workload.output_tokens}"
    return workload.file or workload.kind


def _notes(result: BenchResult) -> Sequence[str]:
    notes = []
    if result.search is not None:
        best = result.search.best_rate
        found = "no rate" if best is None else f"{best:.4g} requests/s"
        notes.append(
            f"highest rate that meets the SLO: {found} (looked from {result.search.low:g} to {result.search.high:g})"
        )
    for point in result.points:
        name, summary = point_name(point), point.summary
        if (cost := summary.cost) is not None:
            prices = (("prompt", cost.prompt), ("output", cost.output), ("blended", cost.blended))
            known = ", ".join(f"{what} {price:.4g}" for what, price in prices if price is not None)
            notes.append(f"cost per million tokens at {name}: {known or 'unknown'}")
        if (share := summary.per_gpu) is not None:
            notes.append(
                f"per GPU at {name}: {share.requests_per_s:.3g} requests/s, {share.output_tokens_per_s:.1f} output and "
                f"{share.total_tokens_per_s:.1f} total tokens/s"
            )
    return notes


def _counts(point: Point) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(point.summary.errors.items()))
    return f"{sum(point.summary.errors.values())} requests ({kinds})"


def _pair(dist: Dist, factor: float) -> tuple[str, str]:
    p50, p99 = (None if value is None else value * factor for value in (dist.p50, dist.p99))
    return _number(p50), _number(p99)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
