"""`gpu.json` as the Markdown of docs/performance.md: nothing but its figures."""

from collections.abc import Mapping
from typing import Any

from gpu_bars import bar_rows, best_throughput, median, milli, step_share
from tables import Rows, markdown

Report = Mapping[str, Any]

COMMAND = "make gpu-check"
BLANK = "–"
CEILINGS = (
    ("copy_bytes_per_s", "a copy", 2, "TB/s read and written"),
    ("bf16_flops", "a bfloat16 matrix product", 0, "TFLOP/s"),
    ("fp8_flops", "an FP8 one", 0, "TFLOP/s"),
)


def chapter(report: Report) -> str:
    """Of one card."""
    parts = [
        _head(report),
        markdown(_text_rows(bar_rows(report))),
        _loads(report),
        _prefill(report),
        _steps(report),
        _attention(report),
        _kernels(report),
        _peers(report),
        _notes(report),
    ]
    return "\n".join(part for part in parts if part)


def blank_chapter() -> str:
    """The marks, with nothing measured."""
    return f"Not measured yet: `{COMMAND}`.\n\n{markdown(_text_rows(bar_rows({})))}"


def _text_rows(rows: list[tuple[str, str, str, str]]) -> Rows:
    return list(rows)


def _head(report: Report) -> str:
    machine, ceilings = report["machine"], report.get("ceilings", {})
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    memory = f", {machine['gpu_memory_bytes'] / 1e9:.0f} GB" if "gpu_memory_bytes" in machine else ""
    driver = f", driver {machine['driver_version']}" if "driver_version" in machine else ""
    reached = [
        f"{name} {number(ceilings[key] / 1e12, digits)} {unit}"
        for key, name, digits, unit in CEILINGS
        if key in ceilings
    ]
    return (
        f"{machine['processor']}{memory}{driver}; Python {machine['python']}, {versions}.\n"
        f"Kernels: {machine['kernels']}.\n"
        f"Measured in the same run: {', '.join(reached) or 'nothing'}.\n"
    )


def _loads(report: Report) -> str:
    rows: Rows = [
        (
            "in / out",
            "precision",
            "requests at once",
            "TTFT, ms",
            "TPOT, ms",
            "tokens/s",
            "step, ms",
            "GB a step",
            "share of the copy bandwidth",
        )
    ]
    groups: dict[tuple[int, int, str, int], list[Report]] = {}
    for one in report.get("loads", ()):
        groups.setdefault((one["input"], one["output"], one["precision"], one["batch"]), []).append(one)
    for (input_, output, precision, batch), found in sorted(groups.items(), key=_order):
        rows.append(
            (
                f"{input_} / {output}",
                precision,
                str(batch),
                number(milli(median(one["ttft_s_median"] for one in found)), 1),
                number(milli(median(one["tpot_s_median"] for one in found)), 2),
                number(median(one["tokens_per_s"] for one in found), 0),
                number(milli(median(one["step_s"] for one in found)), 2),
                number(found[0]["step_bytes"] / 1e9, 1),
                number(median(step_share(report, one) for one in found), 2),
            )
        )
    if len(rows) == 1:
        return ""
    best = best_throughput(report, 128, 128)
    said = f"\nMost at 128 / 128: {best[0]:,.0f} output tokens/s, {best[1]}, {best[2]} requests.\n" if best else ""
    return f"Through the engine, all requests submitted at once:\n\n{markdown(rows)}{said}"


def _order(item: tuple[tuple[int, int, str, int], object]) -> tuple[object, ...]:
    input_, output, precision, batch = item[0]
    return (input_ != 512, input_, output, batch, precision)


def _prefill(report: Report) -> str:
    rows: Rows = [("precision", "prompt, tokens", "TTFT, ms", "TFLOP/s", "of bfloat16's", "of FP8's")]
    ceilings = report.get("ceilings", {})
    for one in report.get("prefill", ()):
        seconds = median(one["ttft_s"])
        speed = one["flop"] / seconds if seconds else None
        shares = [
            None if speed is None or name not in ceilings else speed / ceilings[name]
            for name in ("bf16_flops", "fp8_flops")
        ]
        tera = None if speed is None else speed / 1e12
        rows.append(
            (
                one["precision"],
                f"{one['tokens']:,}",
                number(milli(seconds), 1),
                number(tera, 0),
                *(number(share, 2) for share in shares),
            )
        )
    return f"One prompt, one token, nothing else running:\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _steps(report: Report) -> str:
    rows: Rows = [("precision", "sequences", "context", "ms", "share of the copy bandwidth", "one CUDA graph")]
    for one in report.get("steps", ()):
        rows.append(
            (
                one["precision"],
                str(one["batch"]),
                str(one["context"]),
                number(1e3 * one["seconds"], 2),
                number(step_share(report, one), 2),
                "yes" if one["graph"] else "no",
            )
        )
    return f"The model's decode step alone:\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _attention(report: Report) -> str:
    found = report.get("attention", ())
    copy = report.get("ceilings", {}).get("copy_bytes_per_s")
    decode = [one for one in found if one["query"] == 1]
    parts = []
    for kv_cache in dict.fromkeys(one["kv_cache"] for one in decode):
        own = {(one["batch"], one["context"]): one for one in decode if one["kv_cache"] == kv_cache}
        contexts = sorted({context for _, context in own})
        rows: Rows = [("sequences", *(f"context {context:,}" for context in contexts))]
        for batch in sorted({batch for batch, _ in own}):
            cells = [own.get((batch, context)) for context in contexts]
            shares = [one and copy and one["bytes"] / one["seconds"] / copy for one in cells]
            rows.append((str(batch), *(number(share or None, 2) for share in shares)))
        parts.append(f"Decode attention alone, {kv_cache} KV cache: share of the copy bandwidth.\n\n{markdown(rows)}")
    chunks: Rows = [("KV cache", "sequences", "context", "new tokens", "ms", "TFLOP/s")]
    for one in found:
        if one["query"] > 1:
            numbers = (str(one[name]) for name in ("batch", "context", "query"))
            speed = number(one["flop"] / one["seconds"] / 1e12, 0)
            chunks.append((one["kv_cache"], *numbers, number(1e3 * one["seconds"], 3), speed))
    if len(chunks) > 1:
        parts.append(f"Attention of prompts, one layer:\n\n{markdown(chunks)}")
    return "\n".join(parts)


def _kernels(report: Report) -> str:
    """Times in microseconds, and what is nearer to its limit: the bytes or the arithmetic."""
    found = report.get("kernels", ())
    counts = sorted({one["tokens"] for one in found})
    rows: Rows = [("precision", "kernel", *(f"{count:,} tokens" for count in counts))]
    names = list(dict.fromkeys((one["precision"], one["kernel"]) for one in found))
    for precision, kernel in names:
        own = {one["tokens"]: one for one in found if (one["precision"], one["kernel"]) == (precision, kernel)}
        rows.append((precision, kernel, *(_kernel(report, own.get(count)) for count in counts)))
    if len(rows) == 1:
        return ""
    return (
        "Kernels alone, one layer: µs, and the share of the copy bandwidth (b) or of the bfloat16 matrix product (f),\n"
        f"whichever is larger.\n\n{markdown(rows)}"
    )


def _kernel(report: Report, one: Report | None) -> str:
    if one is None:
        return BLANK
    ceilings = report.get("ceilings", {})
    shares = [
        (one[amount] / one["seconds"] / ceilings[ceiling], letter)
        for amount, ceiling, letter in (("bytes", "copy_bytes_per_s", "b"), ("flop", "bf16_flops", "f"))
        if ceilings.get(ceiling)
    ]
    best = max(shares, default=None)
    text = f"{1e6 * one['seconds']:,.0f}"
    return text if best is None else f"{text} ({best[0]:.2f} {best[1]})"


def _peers(report: Report) -> str:
    rows: Rows = [("peer", "batch", "context", "step, ms", "tokens/s", "share of the copy bandwidth", "compiled in, s")]
    for one in report.get("peers", ()):
        rows.append(
            (
                f"{one['peer']}, {one['precision']}, {'compiled' if one['compiled'] else 'not compiled'}",
                str(one["batch"]),
                str(one["context"]),
                number(1e3 * one["seconds"], 2),
                number(one["batch"] / one["seconds"], 1),
                number(step_share(report, one), 2),
                number(one["compile_s"], 0),
            )
        )
    return f"Peers in the same run:\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _notes(report: Report) -> str:
    failed = [f"{part['name']} failed: {part['error']}." for part in report["parts"] if part["error"]]
    left = [f"{one['what']}: left out, {one['reason']}." for one in report.get("left_out", ())]
    late = [] if report["complete"] else ["The run was stopped before its end."]
    return "\n".join(f"* {line}" for line in (*failed, *left, *late)) + ("\n" if failed or left or late else "")


def number(value: float | None, digits: int) -> str:
    return BLANK if value is None else f"{value:,.{digits}f}"
