"""Result files of speed as Markdown: a function for each kind of file, from its content to the text of its section;
those of the streaming path are in `streaming_tables.py`.

Figures are medians of the rounds with their range behind, and ratios are those of the same round.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import Rows, build_table, markdown, rounds_of, spread

from mixtral_client.bench.picture_data import load_text, workload_text
from mixtral_client.bench.presets import PRESETS
from mixtral_client.bench.result import BenchResult, Dist, Point
from mixtral_client.bench.strict_json import from_json

PEER_METRICS = {
    "ttft_s": "TTFT (below 1 ours is faster)",
    "decode_tokens_per_s": "decode tokens/s",
    "total_tokens_per_s": "total tokens/s",
}


def decode(report: Mapping[str, Any]) -> str:
    peer = report["settings"]["peer"]
    by_batch: dict[int, dict[str, list[float]]] = {}
    for one in report["measurements"]:
        by_batch.setdefault(one["batch"], {})[one["runner"]] = one["tokens_per_s"]
    runners = [name for name in next(iter(by_batch.values())) if name != peer]
    rows: Rows = [
        ("sequences", *(f"{name} / {peer}" for name in runners), *(f"{name}, tokens/s" for name in (*runners, peer)))
    ]
    for batch, found in by_batch.items():
        ratios = [spread(a / b for a, b in zip(found[name], found[peer], strict=True)) for name in runners]
        rows.append((str(batch), *ratios, *(spread(found[name], 0) for name in (*runners, peer))))
    return markdown(rows)


def conversion(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    loading = report["loading"]
    text = (
        f"{rounds_of(settings)}; median time, highest memory. The source has {settings['source_bytes'] / 1e9:.1f} GB.\n"
        f"The hours are for {settings['full_layers']} layers, without what does not grow with them. transformers\n"
        f"loads the source in {loading['median_wall_s']:.1f} s with "
        f"{loading['peak_anonymous_bytes'] / 2**30:.2f} GiB.\n"
    )
    return f"{build_table(dict(report))}\n{text}"


def load_generator(report: Mapping[str, Any]) -> str:
    rows: Rows = [
        ("workload", "processes", "a core allows, responses/s", "reached, responses/s", "tokens/s", "busiest process")
    ]
    for one in report["measurements"]:
        rows.append(
            (
                one["workload"],
                str(one["processes"]),
                spread((1e6 / us for us in one["cpu_us"]), 0),
                spread(one["responses_per_s"], 0),
                spread(one["tokens_per_s"], 0),
                f"{statistics.median(one['cpu_share']):.0%} of a core",
            )
        )
    return markdown(rows)


def peers(report: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(ratio["peer"] for ratio in report["ratios"]))
    rows: Rows = [("requests at once", "peer", *PEER_METRICS.values())]
    for concurrency in sorted({ratio["concurrency"] for ratio in report["ratios"]}):
        for name in names:
            own = {r["metric"]: r for r in report["ratios"] if (r["peer"], r["concurrency"]) == (name, concurrency)}
            rows.append((str(concurrency), name, *(_ratio(own.get(metric)) for metric in PEER_METRICS)))
    settings = report["settings"]
    text = (
        f"{settings['input_tokens']} tokens in, {settings['output_tokens']} out, {rounds_of(settings)}, "
        f"{settings['threads']} threads each."
    )
    skipped = [f"{name} was left out: {reason}" for name, reason in report["skipped"].items()]
    return f"{markdown(rows)}\n" + "\n".join([text, *skipped]) + "\n"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "–"


def preset(path: Path) -> str:
    """Of a result file of `mixtral bench --preset`."""
    content = json.loads(path.read_text())
    for point in content["points"]:
        point["requests"] = []  # thousands, and none is shown
    result = from_json(BenchResult, content, "result")
    rows: Rows = [
        ("load", "prompts", "requests", "errors", "TTFT p50 / p99, ms", "TPOT p50 / p99, ms", "tokens/s", "requests/s")
    ]
    limited = any(point.slo is not None for point in result.points)
    if limited:
        rows[0] += ("limits met", "requests/s within them")
    for point in result.points:
        rows.append(_point(point) + (_within_limits(point) if limited else ()))
    skipped = "".join(f"\nLeft out: {skipped.what}, {skipped.reason}.\n" for skipped in result.skipped)
    return f"{changes(result)}\n\n{markdown(rows)}{skipped}"


def _point(point: Point) -> tuple[str, ...]:
    figures = point.summary
    return (
        load_text(point.load),
        workload_text(point.workload),
        str(figures.completed),
        str(sum(figures.errors.values())),
        _milli(figures.ttft_s),
        _milli(figures.tpot_s),
        f"{figures.output_tokens_per_s:,.0f}",
        f"{figures.requests_per_s:,.2f}",
    )


def _within_limits(point: Point) -> tuple[str, str]:
    goodput = point.summary.goodput_requests_per_s
    met = "–" if point.slo is None else "yes" if point.slo.met else "no"
    return met, "–" if goodput is None else f"{goodput:,.2f}"


def _milli(dist: Dist) -> str:
    return " / ".join("–" if value is None else f"{value * 1000:,.1f}" for value in (dist.p50, dist.p99))


def changes(result: BenchResult) -> str:
    """What was asked for otherwise than the preset says, in the result file's own names, and where and when."""
    usual = json.loads(json.dumps(PRESETS[result.command["preset"]].to_json()))
    found = {key: value for key, value in result.command.items() if key in usual and usual[key] != value}
    said = ", ".join(f"`{key}` {json.dumps(value)}" for key, value in found.items())
    versions = {**(result.server.manifest.get("versions") or {}), **result.versions}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"As the preset says{f' but for {said}' if said else ''}.\n"
        f"{result.started_at[:10]}, {result.hardware.cpu}, {result.hardware.cores} cores; {named}."
    )
