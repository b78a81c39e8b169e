"""The picture of a comparison with peers."""

import statistics
from pathlib import Path
from typing import Any

from mixtral_client.bench.style import COLOURS, new_figure, save

PANELS = (
    ("ttft_s", "time to first token, ms\n(median of a batch)", 1000.0),
    ("decode_tokens_per_s", "decode, output tokens/s\n(all sequences)", 1.0),
    ("total_tokens_per_s", "prompt + output tokens/s\n(whole time)", 1.0),
)
HATCHES = ("", "//", "..", "xx")  # in print without colours too


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Writes peers.png and peers.svg: medians as bars, ranges over the rounds as whiskers."""
    settings, machine = report["settings"], report["machine"]
    rows = report["measurements"]
    names = list(dict.fromkeys(row["peer"] for row in rows))
    concurrencies = sorted({row["concurrency"] for row in rows})
    figure, axes = new_figure(f"Our server beside its peers, {settings['model']}", columns=3, width=9.6, height=3.0)
    width = 0.8 / len(names)
    for panel, (metric, label, scale) in zip(axes, PANELS, strict=True):
        for place, name in enumerate(names):
            own = sorted((row for row in rows if row["peer"] == name), key=lambda row: row["concurrency"])
            values = [[found[metric] * scale for found in row["rounds"]] for row in own]
            medians = [statistics.median(found) for found in values]
            panel.bar(
                [concurrencies.index(row["concurrency"]) + (place - (len(names) - 1) / 2) * width for row in own],
                medians,
                width * 0.94,
                yerr=[
                    [median - min(found) for median, found in zip(medians, values, strict=True)],
                    [max(found) - median for median, found in zip(medians, values, strict=True)],
                ],
                capsize=2.5,
                error_kw={"elinewidth": 1, "ecolor": "#333333"},
                color=COLOURS[place],
                hatch=HATCHES[place],
                edgecolor="white",
                label=f"{name} ({_short(report['peers'][name]['weights'])})",
            )
        panel.set_xticks(range(len(concurrencies)), [str(concurrency) for concurrency in concurrencies])
        panel.set_xlabel("requests at once")
        panel.set_ylabel(label)
        panel.grid(axis="x", visible=False)
    return save(figure, _caption(report, machine, settings), folder, "peers", legend_of=axes)


def _short(weights: str) -> str:
    return weights.split(",")[0].split(" (")[0]


def _caption(report: dict[str, Any], machine: dict[str, Any], settings: dict[str, Any]) -> str:
    versions = {key: value for peer in report["peers"].values() for key, value in peer["versions"].items()}
    return (
        f"{machine['processor']}, {machine['cores']} cores, threads for each: {settings['threads']}. "
        f"{settings['input_tokens']} tokens in, {settings['output_tokens']} out, greedy; bars: median of "
        f"{settings['rounds']} alternated rounds, whiskers: their range.\n"
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + "."
    )
