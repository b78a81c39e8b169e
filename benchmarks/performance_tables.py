"""Result files of speed as Markdown: a function for each kind of file, from its content to the text of its section.

Figures are medians of the rounds with their range behind, and ratios are those of the same round.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Rows, build_table, markdown

from mixtral_client.bench.picture_data import load_text, workload_text
from mixtral_client.bench.presets import PRESETS
from mixtral_client.bench.result import BenchResult, Dist, Point
from mixtral_client.bench.strict_json import from_json

OURS, PLAIN, NVIDIA, DIRECT = "ensemble", "plain ensemble", "nvidia", "engine"  # the paths of `streaming.py`
PATH_NAMES = {OURS: "ours", PLAIN: "plain ensemble", NVIDIA: "NVIDIA's models", DIRECT: "engine model alone"}
SHORT_NAMES = {PLAIN: "plain", NVIDIA: "NVIDIA's"}
PEER_METRICS = {
    "ttft_s": "TTFT (below 1 ours is faster)",
    "decode_tokens_per_s": "decode tokens/s",
    "total_tokens_per_s": "total tokens/s",
}


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the range where there is more than one value; – for none."""
    found = list(values)
    if not found:
        return "–"
    middle = f"{statistics.median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"


def _rounds(settings: Mapping[str, Any]) -> str:
    return "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"


def machine_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `machine.describe` said; two programs name it differently."""
    machine: Mapping[str, Any] = report.get("machine") or report["hardware"]
    return machine


def machine_line(report: Mapping[str, Any]) -> str:
    """The processor and the versions of a result file."""
    machine = machine_of(report)
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}."


def streaming(report: Mapping[str, Any]) -> str:
    rounds, summary, settings = report["rounds"], report["summary"], report["settings"]
    highest = summary["highest_paced_tokens_per_s"]
    first = summary["first_token_p50_ms"]
    peers = [name for name in (PLAIN, NVIDIA) if name in highest]
    rows: Rows = [("figure", *(f"ours / {SHORT_NAMES[n]}" for n in peers), *(PATH_NAMES[n] for n in (OURS, *peers)))]
    ratios = [f"**{_ratios(highest[OURS], highest[name])}**" for name in peers]
    rows.append(("highest paced load, tokens/s", *ratios, *(spread(highest[n], 0) for n in (OURS, *peers))))
    for length in first[OURS]:
        times = {name: first[name][length] for name in (OURS, *peers)}
        added = [_ratios(times[OURS], times[name]) for name in peers]
        rows.append((f"added to TTFT, {length} tokens in, p50, ms", *added, *map(spread, times.values())))
    none = [""] * len(peers)
    single = summary["one_stream_added_p50_ms"]
    rows.append(("added latency of one paced stream, p50, ms", *none, spread(single), *none))
    for unit in ("response", "token"):
        cost = [one[f"per_{unit}"] for one in summary["postprocessing_cpu_us"]]
        rows.append((f"CPU of the detokenizer per {unit}, µs", *none, spread(cost, 1), *none))
    paced = f"Paced: steps of {settings['step_s'] * 1000:g} ms, each giving every stream a token."
    unpaced = f"Unpaced: {settings['unpaced_tokens']:,} tokens a stream, as fast as the engine can."
    return "\n".join(
        [
            markdown(rows),
            f"Load: above 1 ours is better; times: below 1. {_rounds(settings)}.\n\n{paced}\n",
            _loads(rounds, "paced", "share of the offered", lambda point, _: _offered_share(point)),
            f"{unpaced}\n",
            _loads(rounds, "unpaced", "× the plain ensemble's", _over_plain),
        ]
    )


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Of the same round; a round in which they carried nothing has none."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True) if b)


def _loads(
    rounds: Sequence[Mapping[str, Any]], part: str, ratio_name: str, ratio: Callable[[Any, Sequence[Any]], float]
) -> str:
    """A row for each number of streams and path."""
    rows: Rows = [
        (
            "streams",
            "path",
            ratio_name,
            "tokens/s",
            "added p50, ms",
            "added p99, ms",
            "CPU, µs/response",
            "tokens/response",
        )
    ]
    keys = dict.fromkeys((p["streams"], p["path"]) for one in rounds for p in one[part])
    for streams, path in sorted(keys, key=lambda key: (key[0], list(PATH_NAMES).index(key[1]))):
        found = [(p, one[part]) for one in rounds for p in one[part] if (p["streams"], p["path"]) == (streams, path)]
        points = [point for point, _ in found]
        rows.append(
            (
                str(streams),
                PATH_NAMES[path],
                spread(ratio(point, others) for point, others in found),
                spread((p["delivered_tokens_per_s"] for p in points), 0),
                spread((p["added_p50_ms"] for p in points), 1),
                spread((p["added_p99_ms"] for p in points), 1),
                spread((_server_cpu(p) for p in points if p["cpu_us"]), 0),
                spread((p["tokens_per_response"] for p in points), 1),
            )
        )
    return markdown(rows)


def _offered_share(point: Mapping[str, Any]) -> float:
    return float(point["delivered_tokens_per_s"] / point["offered_tokens_per_s"])


def _over_plain(point: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> float:
    (plain,) = (p for p in others if p["path"] == PLAIN and p["streams"] == point["streams"])
    return float(point["delivered_tokens_per_s"] / plain["delivered_tokens_per_s"])


def _server_cpu(point: Mapping[str, Any]) -> float:
    return float(sum(us for process, us in point["cpu_us"].items() if process != "client"))


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
        f"{_rounds(settings)}; median time, highest memory. The source has {settings['source_bytes'] / 1e9:.1f} GB.\n"
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
        f"{settings['input_tokens']} tokens in, {settings['output_tokens']} out, {_rounds(settings)}, "
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
