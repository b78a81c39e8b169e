"""The result of `streaming.py` as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"engine": "#767676", "ensemble": "#0072b2", "plain ensemble": "#d55e00", "nvidia": "#009e73"}
MARKS = {"engine": "s", "ensemble": "o", "plain ensemble": "^", "nvidia": "v"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Left: lag against what the engine makes, to the first load each path does not carry. Right: all loads."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for one_round in result["rounds"]:
        for name, points in one_round["ladders"].items():
            _lag(left, name, points)
        for name in COLOURS:
            if not (points := [p for p in one_round["paced"] if p["path"] == name]):
                continue
            _delivered(right, name, points)
    left.axhline(100, color="black", linewidth=0.8, linestyle=":")
    left.set(xscale="log", yscale="log", xlabel="tokens/s that the engine makes", ylabel="added latency, p99, ms")
    left.set_title("Lag of the path (a line ends with the first load it does not carry)", fontsize=10)
    right.set(xscale="log", yscale="log", xlabel="tokens/s that the engine makes", ylabel="tokens/s delivered")
    right.set_title("Delivered", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys())
    machine = result["hardware"]
    caption = f"{machine['processor']}, {machine['cores']} cores; synthetic engine, {len(result['rounds'])} rounds"
    figure.suptitle(f"Streaming path\n{caption}", fontsize=10)
    figure.savefig(path, dpi=130)
    figure.savefig(path.with_suffix(".svg"))
    plt.close(figure)


def _lag(axes: Axes, name: str, points: list[dict[str, Any]]) -> None:
    x = [p["offered_tokens_per_s"] for p in points]
    axes.plot(x, [p["added_p99_ms"] for p in points], color=COLOURS[name], marker=MARKS[name], alpha=0.7, label=name)


def _delivered(axes: Axes, name: str, points: list[dict[str, Any]]) -> None:
    x = [p["offered_tokens_per_s"] for p in points]
    y = [p["delivered_tokens_per_s"] for p in points]
    axes.plot(x, y, color=COLOURS[name], marker=MARKS[name], alpha=0.7, label=name)
