"""The picture of `gpu.py`: python benchmarks/gpu_picture.py benchmarks/results/CARD/gpu.json"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_bars import median, step_share

from mixtral_client.bench.style import COLOURS, DASHES, MARKERS, log_if_wide, new_figure, save, zero_based

Report = Mapping[str, Any]


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes gpu.png and gpu.svg: tokens/s and share of the copy bandwidth by batch, and decode attention's share."""
    figure, axes = new_figure(
        f"The PyTorch engine on {report['machine']['processor']}", columns=3, width=11.5, height=3.6
    )
    speed, share, attention = axes
    _by_batch(report, speed, share)
    _attention(report, attention)
    caption = "Mixtral-8x7B's shape, random weights. {}, {}.".format(
        "{} tokens in, {} out, all requests at once".format(*_commonest_shape(report)),
        ", ".join(f"{name} {number}" for name, number in report["machine"]["versions"].items()),
    )
    return save(figure, caption, folder, "gpu", legend_of=axes)


def _by_batch(report: Report, speed: Any, share: Any) -> None:
    shape = _commonest_shape(report)
    found = [one for one in report.get("loads", ()) if (one["input"], one["output"]) == shape]
    batches = sorted({one["batch"] for one in found})
    for place, precision in enumerate(dict.fromkeys(one["precision"] for one in found)):
        style = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": DASHES[place % len(DASHES)]}
        own = [[one for one in found if (one["precision"], one["batch"]) == (precision, b)] for b in batches]
        here = [(batch, rows) for batch, rows in zip(batches, own, strict=True) if rows]
        tokens = [median(one["tokens_per_s"] for one in rows) for _, rows in here]
        speed.plot([batch for batch, _ in here], tokens, label=precision, **style)
        shares = [median(step_share(report, one) for one in rows) for _, rows in here]
        share.plot([batch for batch, _ in here], shares, label=precision, **style)
    for panel, label in ((speed, "output tokens/s"), (share, "decode step: share of the copy bandwidth")):
        panel.set_xlabel("requests at once")
        panel.set_ylabel(label)
        log_if_wide(panel, "x", batches)
    log_if_wide(speed, "y", [one["tokens_per_s"] for one in found])
    zero_based(share, "y", [1.0])


def _attention(report: Report, panel: Any) -> None:
    copy = report.get("ceilings", {}).get("copy_bytes_per_s")
    found = [one for one in report.get("attention", ()) if one["query"] == 1]
    contexts: list[float] = []
    for place, kv_cache in enumerate(dict.fromkeys(one["kv_cache"] for one in found)):
        for style, batch in enumerate(sorted({one["batch"] for one in found})):
            own = sorted(
                (one["context"], one["bytes"] / one["seconds"] / copy)
                for one in found
                if copy and (one["kv_cache"], one["batch"]) == (kv_cache, batch)
            )
            contexts += [context for context, _ in own]
            panel.plot(
                [context for context, _ in own],
                [value for _, value in own],
                color=COLOURS[style % len(COLOURS)],
                linestyle=DASHES[place],
                marker=MARKERS[place],
                label=f"attention, batch {batch}, {kv_cache} KV",
            )
    panel.set_xlabel("context, tokens")
    panel.set_ylabel("decode attention: share of the copy bandwidth")
    log_if_wide(panel, "x", contexts)
    zero_based(panel, "y", [1.0])


def _commonest_shape(report: Report) -> tuple[int, int]:
    """(512, 128) where it was measured."""
    shapes = [(one["input"], one["output"]) for one in report.get("loads", ())]
    return (512, 128) if (512, 128) in shapes or not shapes else shapes[0]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    for made in draw(json.loads(path.read_text(encoding="utf-8")), path.parent):
        print(made)
