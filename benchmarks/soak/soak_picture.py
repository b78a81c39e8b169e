"""The soak as a picture: memory, descriptors, threads and tables over time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Samples = Sequence[Mapping[str, Any]]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """report: the JSON report of a soak."""
    samples: Samples = report["samples"]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
    panels: list[tuple[str, Callable[[Mapping[str, Any]], float]]] = [
        ("anonymous memory, MiB", lambda process: process["anonymous"] / 2**20),
        ("file descriptors", lambda process: process["descriptors"]),
        ("threads", lambda process: process["threads"]),
    ]
    for axis, (title, value) in zip(axes.flat, panels, strict=False):
        for name in samples[0]["processes"]:
            points = [(s["at_s"], value(s["processes"][name])) for s in samples if name in s["processes"]]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    tables = axes.flat[3]
    for name in samples[-1]["tables"]:
        values = [s["tables"].get(name, 0) for s in samples]
        tables.plot([s["at_s"] for s in samples], values, label=name.removeprefix("mixtral_"), linewidth=1)
    tables.set_title("held for requests (0 at each rest)")
    axes.flat[0].legend(fontsize=7)
    tables.legend(fontsize=7)
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    outcome = "passed" if not report["failures"] else "failed"
    figure.suptitle(f"soak: {sum(report['asked'].values())} requests, {report['tokens']} tokens checked, {outcome}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
