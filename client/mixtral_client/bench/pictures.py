"""Pictures of results: latency and throughput against load, distributions, and a timeline of one point.

`draw` takes one result, `draw_together` overlays several. Each picture is a PNG and an SVG; what it shows comes from
`picture_data`, how it looks from `style`. docs/benchmarking.md tells how to read them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixtral_client.bench.picture_data import (
    LATENCIES,
    Curve,
    Line,
    Mode,
    Run,
    Timeline,
    arrival_lines,
    curves,
    has_line,
    latency_lines,
    limits,
    load_text,
    modes,
    throughput_lines,
    timeline,
    workload_text,
)
from mixtral_client.bench.picture_text import caption, title
from mixtral_client.bench.result import BenchResult, Point
from mixtral_client.bench.style import COLOURS, DASHES, GREY, MARKERS, log_if_wide, new_figure, save, zero_based

_MILLI = 1e3
_LATENCY_LABELS = {
    "ttft_s": ("time to first token (TTFT), ms", _MILLI),
    "tpot_s": ("time per output token (TPOT), ms", _MILLI),
    "e2e_s": ("end to end, s", 1.0),
}
_RATE_LABELS = {"output_tokens_per_s": "output tokens/s", "requests_per_s": "completed requests/s"}
_LOAD_LABELS: dict[Mode, str] = {"closed": "requests at once", "open": "arrival rate, requests/s"}
_LOAD_NAMES: dict[Mode, str] = {"closed": "concurrency", "open": "arrival rate"}
_FILE_NAMES: dict[Mode, str] = {"closed": "concurrency", "open": "rate"}


def draw(result: BenchResult, folder: Path) -> list[Path]:
    """All pictures that the result has something for, written to folder; returns their paths. Raises
    PicturesUnavailable without matplotlib."""
    paths = draw_together([Run("", result)], folder)
    shown = [point for point in result.points if any(record.measured for record in point.requests)]
    return paths + (_draw_timeline(result, shown[-1], folder) if shown else [])


def draw_together(runs: Sequence[Run], folder: Path) -> list[Path]:
    """The pictures in which results can lie over one another."""
    paths = []
    for mode in modes(runs):
        if has_line(runs, mode):
            paths += _draw_latency(runs, mode, folder)
            paths += _draw_throughput(runs, mode, folder)
    if not any(has_line(runs, mode) for mode in modes(runs)) and sum(len(run.result.points) for run in runs) > 1:
        paths += _draw_points(runs, folder)
    return paths + _draw_distributions(runs, folder)


def _draw_latency(runs: Sequence[Run], mode: Mode, folder: Path) -> list[Path]:
    figure, panels = new_figure(title(f"Latency against {_LOAD_NAMES[mode]}", runs), columns=3, width=10.2, height=3.2)
    for panel, metric in zip(panels, LATENCIES, strict=True):
        label, scale = _LATENCY_LABELS[metric]
        lines = latency_lines(runs, mode, metric)
        for line in lines:
            _plot(panel, line, scale, DASHES[line.kind == "p99"], _joined(line.label, line.kind))
        panel.set_xlabel(_LOAD_LABELS[mode])
        panel.set_ylabel(label)
        values = [y * scale for line in lines for y in line.y]
        bounds = [(statistic, limit_s * scale) for statistic, limit_s in limits(runs, metric)]
        if not log_if_wide(panel, "y", values):
            zero_based(panel, "y", [*values, *(bound for _, bound in bounds)])
        for statistic, bound in bounds:
            _plot_limit(panel, f"limit on {statistic}", bound)
        _load_ticks(panel, [x for line in lines for x in line.x])
    return save(figure, caption(runs), folder, f"latency-{_FILE_NAMES[mode]}", legend_of=panels)


def _draw_throughput(runs: Sequence[Run], mode: Mode, folder: Path) -> list[Path]:
    figure, panels = new_figure(title(f"Throughput against {_LOAD_NAMES[mode]}", runs), columns=2, height=3.2)
    requests = panels[1]
    for panel, (metric, label) in zip(panels, _RATE_LABELS.items(), strict=True):
        lines = throughput_lines(runs, mode, metric)
        for line in lines:
            _plot(panel, line, 1.0, DASHES[0], _joined(line.label, "completed" if panel is requests else ""))
        panel.set_xlabel(_LOAD_LABELS[mode])
        panel.set_ylabel(label)
        loads = [x for line in lines for x in line.x]
        if panel is requests:
            for line in throughput_lines(runs, mode, "goodput_requests_per_s"):
                _plot(panel, line, 1.0, DASHES[1], _joined(line.label, "within the limits (goodput)"))
            for line in arrival_lines(runs) if mode == "open" else ():
                panel.plot(line.x, line.y, ":", color=GREY, linewidth=1, zorder=1, label="arrived")
        zero_based(panel, "y", [y for drawn in panel.lines for y in drawn.get_ydata()])
        _load_ticks(panel, loads)
    return save(figure, caption(runs), folder, f"throughput-{_FILE_NAMES[mode]}", legend_of=[requests])


def _draw_points(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Bars: for points that differ in their workload and not along one axis."""
    names = list(dict.fromkeys(_point_name(point) for run in runs for point in run.result.points))
    rows = len(names) * len(runs)
    figure, panels = new_figure(title("Every point", runs), columns=3, width=10.2, height=0.8 + 0.3 * rows)
    height = 0.8 / len(runs)
    for panel, (label, value) in zip(panels, _BARS.items(), strict=True):
        for place, run in enumerate(runs):
            found = [(names.index(_point_name(point)), value(point)) for point in run.result.points]
            shown = [(at + (place - (len(runs) - 1) / 2) * height, y) for at, y in found if y is not None]
            bars = panel.barh(
                [at for at, _ in shown], [y for _, y in shown], height * 0.9, color=COLOURS[place], label=run.name
            )
            panel.bar_label(bars, [f"{y:.0f}" if y >= 100 else f"{y:.3g}" for _, y in shown], padding=2, fontsize=7)
        panel.set_yticks(range(len(names)), names if panel is panels[0] else [""] * len(names))
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.grid(axis="y", visible=False)
        panel.margins(x=0.16)
        panel.set_xlabel(label)
    return save(figure, caption(runs), folder, "points", legend_of=panels if len(runs) > 1 else ())


def _draw_distributions(runs: Sequence[Run], folder: Path) -> list[Path]:
    found = {metric: curves(runs, metric) for metric in ("ttft_s", "tpot_s")}
    if not any(found.values()):
        return []
    figure, panels = new_figure(title("Distributions over requests", runs), columns=2, height=3.4)
    for panel, (metric, own) in zip(panels, found.items(), strict=True):
        label, scale = _LATENCY_LABELS[metric]
        for number, curve in enumerate(own):
            _plot_curve(panel, curve, scale, number)
        panel.set_xlabel(label)
        panel.set_ylabel("percentile of requests")
        values = [x * scale for curve in own for x in curve.x]
        if not log_if_wide(panel, "x", values):
            zero_based(panel, "x", values)
        panel.set_ylim(0, 101)
        panel.set_yticks([0, 25, 50, 75, 90, 99])
    note = "Dots: p50, p90 and p99."
    return save(figure, f"{note}\n{caption(runs)}", folder, "distributions", legend_of=panels)


def _draw_timeline(result: BenchResult, point: Point, folder: Path) -> list[Path]:
    shown = timeline(point)
    run = Run("", result)
    figure, (panel,) = new_figure(title(f"Timeline of {shown.title}", [run]), height=1.2 + 0.1 * len(shown.rows))
    waits = [(row.scheduled_s, row.end_s if row.first_s is None else row.first_s) for row in shown.rows]
    panel.hlines(range(len(waits)), *zip(*waits, strict=True), color="#b8b8b8", linewidth=2, label="waiting, prefill")
    streams = [(i, row.first_s, row.end_s) for i, row in enumerate(shown.rows) if row.first_s is not None]
    if streams:
        places, firsts, ends = zip(*streams, strict=True)
        panel.hlines(places, firsts, ends, color=COLOURS[4], linewidth=2, label="streaming")
        panel.plot(*_ticks(shown), color=COLOURS[0], linewidth=0.6, label="response")
        panel.plot(firsts, places, "o", color=COLOURS[1], markersize=3.2, label="first token")
    if failed := [(row.end_s, i) for i, row in enumerate(shown.rows) if row.failed]:
        panel.plot(*zip(*failed, strict=True), "x", color="black", markersize=5, label="failed")
    begin, end = min(row.scheduled_s for row in shown.rows), max(row.end_s for row in shown.rows)
    room = 0.02 * (end - begin) or 0.1
    panel.set_xlim(begin - room, end + room)  # the window may be much longer
    panel.axvspan(*shown.window, color="#f3efe0", zorder=0, linewidth=0, label="steady state")
    panel.set_xlabel("seconds since the point began")
    panel.set_ylabel(f"requests, {len(shown.rows)} of {shown.of} measured")
    panel.set_ylim(len(shown.rows) - 0.3, -0.7)
    panel.set_yticks([])
    return save(figure, caption([run]), folder, "timeline", legend_of=[panel])


def _ticks(shown: Timeline) -> tuple[list[float], list[float]]:
    """All ticks as one broken line: a mark each would make an SVG of megabytes."""
    x, y = [], []
    for i, row in enumerate(shown.rows):
        for at in row.responses:
            x += [at, at, float("nan")]
            y += [i - 0.36, i + 0.36, float("nan")]
    return x, y


def _plot(panel: Any, line: Line, scale: float, dash: str, label: str) -> None:
    colour, marker = COLOURS[line.group % len(COLOURS)], MARKERS[line.group % len(MARKERS)]
    y = [value * scale for value in line.y]
    panel.plot(line.x, y, dash, color=colour, marker=marker, label=label)
    if cut := [(x, value) for x, value, partial in zip(line.x, y, line.partial, strict=True) if partial]:
        xs, ys = zip(*cut, strict=True)
        panel.plot(xs, ys, marker, color=colour, markerfacecolor="white", markersize=7, label="partial")


def _plot_curve(panel: Any, curve: Curve, scale: float, number: int) -> None:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    panel.plot([x * scale for x in curve.x], curve.percentile, dash, color=colour, label=curve.label)
    panel.plot([x * scale for x in curve.marks.values()], list(curve.marks), ".", color=colour, markersize=7)


def _plot_limit(panel: Any, text: str, value: float) -> None:
    panel.axhline(value, color=GREY, linewidth=1, linestyle=":", zorder=1)
    place = {"xy": (0.02, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 2)}
    panel.annotate(text, **place, textcoords="offset points", fontsize=7, color=GREY)


def _load_ticks(panel: Any, loads: Sequence[float]) -> None:
    """A tick at every load that was measured; loads that double from point to point get a logarithmic axis."""
    values = sorted(set(loads))
    if len(values) > 2 and values[-1] / values[0] >= 8:
        panel.set_xscale("log", base=2)
        panel.set_xlim(values[0] / 1.3, values[-1] * 1.3)
    panel.set_xticks(values, [f"{value:.3g}" for value in values])
    panel.xaxis.minorticks_off()


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _point_name(point: Point) -> str:
    return f"{workload_text(point.workload)}, {load_text(point.load)}"


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * _MILLI


_BARS: dict[str, Callable[[Point], float | None]] = {
    "output tokens/s": lambda point: point.summary.output_tokens_per_s,
    "TTFT, ms, median": lambda point: _milli(point.summary.ttft_s.p50),
    "TPOT, ms, median": lambda point: _milli(point.summary.tpot_s.p50),
}
