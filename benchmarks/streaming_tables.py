"""Results of the streaming path as Markdown tables: of `streaming.py`, `detokenizer.py` and `tokenizer.py`.

Figures are medians of the rounds with their range behind, and ratios are those of the same round.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tables import Rows, markdown, rounds_of, spread

OURS, PLAIN, NVIDIA, DIRECT = "ensemble", "plain ensemble", "nvidia", "engine"  # the paths of `streaming.py`
PATH_NAMES = {OURS: "ours", PLAIN: "plain ensemble", NVIDIA: "NVIDIA's models", DIRECT: "engine model alone"}
DETOKENIZERS = {"DecodeStream": "`DecodeStream`", "full decode": "decoding the whole output again on each call"}
NVIDIA_IS = (
    " NVIDIA's models: its published tokenizer, detokenizer\nand ensemble, with the plain ensemble's engine model."
)
SHORT_NAMES = {PLAIN: "plain", NVIDIA: "NVIDIA's"}


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
    who = NVIDIA_IS if NVIDIA in peers else ""
    paced = f"Paced: steps of {settings['step_s'] * 1000:g} ms, each giving every stream a token."
    unpaced = f"Unpaced: {settings['unpaced_tokens']:,} tokens a stream, as fast as the engine can."
    return "\n".join(
        [
            markdown(rows),
            f"Load: above 1 ours is better; times: below 1. {rounds_of(settings)}.{who}\n\n{paced}\n",
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


def low_load(report: Mapping[str, Any]) -> str:
    """What the ensembles add where there is next to no load."""
    names = [name for name in PATH_NAMES if name in report["summary"]["first_token_p50_ms"]]
    single = {
        name: [
            p["added_p50_ms"] for r in report["rounds"] for p in r["paced"] if (p["path"], p["streams"]) == (name, 1)
        ]
        for name in names
    }
    rows: Rows = [("added, p50, ms", *(PATH_NAMES[name] for name in names))]
    rows.append(("a token of one paced stream", *(spread(single[name]) for name in names)))
    for length in report["summary"]["first_token_p50_ms"][OURS]:
        times = (report["summary"]["first_token_p50_ms"][name][length] for name in names)
        rows.append((f"the first token, {length} tokens in", *map(spread, times)))
    return markdown(rows)


def response_costs(report: Mapping[str, Any]) -> str:
    """Processor time per response by process, of the paced loads: rows by number of streams and path."""
    processes = ("server", "tensorrt_llm", "postprocessing")
    rows: Rows = [("streams", "path", *(f"{name}, µs" for name in processes), "tokens/response")]
    points = [point for one in report["rounds"] for point in one["paced"]]
    for streams in sorted({point["streams"] for point in points} - {1}):  # one stream's are too few to tell the time of
        for path in (name for name in PATH_NAMES if any(point["path"] == name for point in points)):
            found = [point for point in points if (point["streams"], point["path"]) == (streams, path)]
            costs = (
                [] if (path, name) == (DIRECT, "postprocessing") else [p["cpu_us"].get(name, 0.0) for p in found]
                for name in processes
            )
            tokens = spread((p["tokens_per_response"] for p in found), 1)
            rows.append((str(streams), PATH_NAMES[path], *(spread(cost, 0) for cost in costs), tokens))
    return markdown(rows)


def detokenizer(report: Mapping[str, Any]) -> str:
    """Of `detokenizer.json`: microseconds per token, by way and length of the output."""
    found = {(o["way"], o["tokens_per_call"], o["output_tokens"]): o["us_per_token"] for o in report["ways"]}
    ways, calls, lengths = (dict.fromkeys(key[i] for key in found) for i in range(3))
    rows: Rows = [("µs per token", "tokens a call", *(f"{length:,} tokens" for length in lengths))]
    for way in ways:
        for count in calls:
            figures = (f"{found[way, count, length]:,.2f}" for length in lengths)
            rows.append((DETOKENIZERS.get(way, way), str(count), *figures))
    own = "; ".join(
        f"with {fit['stop_strings'] or 'no'} stop strings {fit['us_per_response']:.1f} µs and "
        f"{fit['us_per_token']:.2f} µs a token"
        for fit in report["responses"]
    )
    return f"{markdown(rows)}\nA response costs `postprocessing` in its own code:\n{own}.\n"


def tokenizer(report: Mapping[str, Any]) -> str:
    """Of `tokenizer.json`: milliseconds, by number of instances and whether the tokenizer has threads of its own."""
    variants = report["variants"]
    names = (f"{v['instances']} instance{'s'[: v['instances'] - 1]}{', threads' * v['parallel']}" for v in variants)
    rows: Rows = [("medians, ms", *names)]
    long = max(map(int, report["tokenizer_alone_ms"]))
    rows.append(
        (
            f"a prompt of 16 tokens that arrives while one of {long:,} is encoded",
            *(f"{v['short_behind_long_ms']['p50']:.1f}" for v in variants),
        )
    )
    for part, what in (("preprocessing_ms", "through `preprocessing`"), ("ensemble_ms", "to the first token")):
        for length in report["tokenizer_alone_ms"]:
            rows.append((f"a prompt of {int(length):,}, {what}", *(f"{v[part][length]:.1f}" for v in variants)))
    for key, what in (("p50", "half of them"), ("last", "the last")):
        figures = (f"{v['burst_of_64_ms'][key]:.0f}" for v in variants)
        rows.append((f"a burst of 64 short prompts through the ensemble, {what}", *figures))
    rows.append(("memory of an instance, MiB", *(f"{v['instance_mib']:.0f}" for v in variants)))
    alone = ", ".join(f"{ms:.2g} ms for {int(length):,} tokens" for length, ms in report["tokenizer_alone_ms"].items())
    return f"{markdown(rows)}\nOf these the tokenizer itself takes {alone}.\n"
