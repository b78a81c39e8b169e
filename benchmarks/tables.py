"""Results as the Markdown tables of docs/performance.md, docs/quality.md and docs/streaming.md."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GIB = 2**30
Rows = list[tuple[str, ...]]


def quality_table(report: dict[str, Any]) -> str:
    """Of `quality.json`."""
    rows: Rows = [("precision", "perplexity", "mean KL, nats", "top-1 agreement", "tokens with the same experts")]
    for name, r in report["results"].items():
        routing = min(layer["routing_agreement"] for layer in r["layers"])
        change = f"{r['perplexity_change_percent']:+.3f} %"
        rows.append((name, change, f"{r['mean_kl']:.1e}", f"{r['top1_agreement']:.2%}", f"{routing:.2%}"))
    return markdown(rows)


def build_table(report: dict[str, Any]) -> str:
    """Of `build.json`."""
    rows: Rows = [
        ("precision", "quantise, s", "plain copy, s", "share of the copy's speed", "peak anonymous", "32 layers, h")
    ]
    for m in report["measurements"]:
        quantize, copy = m["quantize"], m["copy"]
        rows.append(
            (
                m["precision"],
                f"{quantize['median_wall_s']:.1f}",
                f"{copy['median_wall_s']:.1f}",
                f"{m['speed_ratio']:.2f}",
                f"{quantize['peak_anonymous_bytes'] / GIB:.2f} GiB",
                f"{m['full_model_hours']:.2f}",
            )
        )
    return markdown(rows)


def markdown(rows: Rows) -> str:
    head, *body = ("| " + " | ".join(row) + " |\n" for row in rows)
    return head + "| --- " * len(rows[0]) + "|\n" + "".join(body)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the range where there is more than one value; – for none."""
    found = list(values)
    if not found:
        return "–"
    middle = f"{statistics.median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"


def rounds_of(settings: Mapping[str, Any]) -> str:
    return "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"


def machine_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `machine.describe` said; two programs name it differently."""
    machine: Mapping[str, Any] = report.get("machine") or report["hardware"]
    return machine


def source_line(path: Path, report: Mapping[str, Any], command: str) -> str:
    """Where the figures above it come from. path: of the result file."""
    link = f"[result](../benchmarks/results/{path.parent.name}/{path.name})"
    return f"`{command}`, {link}: {machine_line(report)}\n"


def machine_line(report: Mapping[str, Any]) -> str:
    """The processor and the versions of a result file, and its note if it has one."""
    machine = machine_of(report)
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    note = f" {report['note'][:1].upper()}{report['note'][1:]}." if report.get("note") else ""
    return f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}.{note}"
