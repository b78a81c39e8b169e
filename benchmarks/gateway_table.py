"""`gateway.json` as Markdown."""

from collections.abc import Mapping
from typing import Any

from tables import Rows, markdown, spread


def gateway(report: Mapping[str, Any]) -> str:
    rows: Rows = [
        (
            "load",
            "tokens a chunk",
            "processor time a chunk, µs",
            "tokens/s: direct, gateway / direct",
            "TTFT, ms: direct, added",
            "lag of a token, ms: direct, added",
        )
    ]
    for point in report["points"]:
        summary = point["summary"]
        paced = point["step_s"] > 0
        rows.append(
            (
                _load(point),
                spread((point["streams"] * point["tokens"] / one["chunks"] for one in point["gateway"]), 1),
                spread(summary["cpu_us_per_chunk"], 0),
                f"{summary['tokens_per_s']['direct']:,.0f}, {spread(summary['throughput_share'])}"
                if point["streams"] > 1
                else "–",
                _added(summary, "ttft") if paced else "–",
                _added(summary, "lag") if paced else "–",
            )
        )
    return markdown(rows)


def _load(point: Mapping[str, Any]) -> str:
    streams = "1 stream" if point["streams"] == 1 else f"{point['streams']} streams"
    pace = f"a step every {point['step_s'] * 1000:g} ms" if point["step_s"] else "no pace"
    return f"{streams} of {point['tokens']} tokens, {pace}"


def _added(summary: Mapping[str, Any], name: str) -> str:
    return f"{summary[f'{name}_p50_ms']['direct']:.1f}, {summary[f'added_{name}_p50_ms']:+.1f}"
