"""The picture of `engine.py`: decode and prefill of every engine, for each model a file."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_report import MEMORY, PEERS, PRECISIONS

from mixtral_client.bench.style import COLOURS, new_figure, save

HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++", "oo")  # in print without colours too
PANELS = (("decode", "sequences decoded together"), ("prefill", "tokens of the prompt"))
FIRST = "random"  # the model whose picture has no suffix


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes engine.png and .svg, and engine-MODEL for every other model. Bars: medians; whiskers: p10 to p90."""
    models = list(dict.fromkeys(one["model"] for one in report["measurements"]))
    return [path for model in models for path in _draw(report, model, folder)]


def _draw(report: Mapping[str, Any], model: str, folder: Path) -> list[Path]:
    own = [one for one in report["measurements"] if one["model"] == model]
    names = list(dict.fromkeys(one["runner"] for one in own if one["runner"] != MEMORY))
    title = "a random Mixtral of 0.8 billion parameters" if model == FIRST else f"the {model} model"
    figure, axes = new_figure(f"Engines on {title}", columns=2, width=9.6, height=3.4)
    width = 0.84 / len(names)
    for panel, (phase, label) in zip(axes, PANELS, strict=True):
        sizes = sorted({one["size"] for one in own if one["phase"] == phase})
        for place, name in enumerate(names):
            rows = [one for one in own if (one["phase"], one["runner"]) == (phase, name)]
            medians = [statistics.median(one["tokens_per_s"]) for one in rows]
            panel.bar(
                [sizes.index(one["size"]) + (place - (len(names) - 1) / 2) * width for one in rows],
                medians,
                width * 0.94,
                yerr=[
                    [m - min(one["tokens_per_s"]) for m, one in zip(medians, rows, strict=True)],
                    [max(one["tokens_per_s"]) - m for m, one in zip(medians, rows, strict=True)],
                ],
                capsize=1.5,
                error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
                color=COLOURS[place % len(COLOURS)],
                hatch=HATCHES[place],
                edgecolor="white",
                label=f"{name} ({PRECISIONS[name]})" if name in PEERS else name,
            )
        if phase == "decode":
            _limit(panel, own, sizes)
        panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        panel.set_xlabel(label)
        panel.set_ylabel(f"{phase}, tokens/s")
        panel.grid(axis="x", visible=False)
    name = "engine" if model == FIRST else f"engine-{model}"
    return save(figure, _caption(report), folder, name, legend_of=axes)


def _limit(panel: Any, own: list[Mapping[str, Any]], sizes: list[int]) -> None:
    """A line over each group: what reading the int8 weights alone allows."""
    for one in own:
        if (one["phase"], one["runner"]) == ("decode", MEMORY):
            place, speed = sizes.index(one["size"]), statistics.median(one["tokens_per_s"])
            label = "memory's limit for int8" if place == 0 else None
            panel.hlines(speed, place - 0.46, place + 0.46, colors="#000000", linestyles="--", label=label)


def _caption(report: Mapping[str, Any]) -> str:
    machine, settings = report["machine"], report["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, threads for each: {settings['threads']}. "
        f"Bars: median of {settings['rounds']} alternated rounds, whiskers: their range.\n{versions}."
    )
