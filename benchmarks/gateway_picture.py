"""The result of `gateway.py` as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"direct": "#767676", "gateway": "#0072b2"}
CPU_BAR_US, SHARE_BAR = 100.0, 0.6


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Processor time per chunk, tokens/s and the way of a token, each point a measurement."""
    points = report["points"]
    figure, (cpu, speed, lag) = plt.subplots(1, 3, figsize=(17, 4.8), layout="constrained")
    paced = [point for point in points if point["step_s"]]  # without a pace a chunk has hundreds of tokens
    _cpu(cpu, paced)
    _speed(speed, [point for point in points if point["streams"] > 1])
    _lag(lag, paced)
    for axes in (cpu, speed, lag):
        axes.grid(alpha=0.3, axis="y")
    cpu.set_ylim(bottom=0)
    machine = report["machine"]
    figure.suptitle(f"OpenAI gateway\n{machine['processor']}, {machine['cores']} cores; synthetic engine", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _name(point: Mapping[str, Any]) -> str:
    streams = "1 stream" if point["streams"] == 1 else f"{point['streams']} streams"
    return f"{streams},\n{point['step_s'] * 1000:g} ms steps" if point["step_s"] else f"{streams},\nno pace"


def _cpu(axes: Axes, points: list[Mapping[str, Any]]) -> None:
    for x, point in enumerate(points):
        values = point["summary"]["cpu_us_per_chunk"]
        axes.plot([x] * len(values), values, "o", color=COLOURS["gateway"], alpha=0.7)
    axes.axhline(CPU_BAR_US, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(points)), [_name(point) for point in points], fontsize=8)
    axes.set(ylabel="µs a chunk", xlim=(-0.5, len(points) - 0.5))
    axes.set_title("Processor time of the gateway (bound: 100 µs)", fontsize=10)


def _speed(axes: Axes, points: list[Mapping[str, Any]]) -> None:
    _both(axes, points, "tokens_per_s")
    for x, point in enumerate(points):
        bar = SHARE_BAR * point["summary"]["tokens_per_s"]["direct"]
        axes.plot([x - 0.3, x + 0.3], [bar, bar], color="black", linewidth=0.8, linestyle=":")
    axes.set(ylabel="tokens/s", yscale="log")
    axes.set_title("Throughput (bound: 60 % of direct)", fontsize=10)


def _lag(axes: Axes, points: list[Mapping[str, Any]]) -> None:
    _both(axes, points, "lag_p50_ms")
    axes.set(ylabel="ms, median", yscale="log")
    axes.set_title("From a token's making to its arrival", fontsize=10)


def _both(axes: Axes, points: list[Mapping[str, Any]], figure: str) -> None:
    for x, point in enumerate(points):
        for way, shift in (("direct", -0.1), ("gateway", 0.1)):
            values = [one[figure] for one in point[way]]
            label = None if x else way
            axes.plot([x + shift] * len(values), values, "o", color=COLOURS[way], alpha=0.7, label=label)
    axes.set_xticks(range(len(points)), [_name(point) for point in points], fontsize=8)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.legend()
