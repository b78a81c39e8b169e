"""The marks that the engine on a GPU is held to, and whether a result file reaches them."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

# Output tokens/s at 128 in, 128 out and full load, FP8, one card: NVIDIA's performance overview of TensorRT-LLM 0.17.
NVIDIA_TOKENS_PER_S = {"H100": 15_962.0, "H200": 17_158.0}
GPT_FAST_SHARE = 0.62  # of an A100's bandwidth, int8 at batch 1, by its authors


@dataclass(frozen=True, slots=True)
class Bar:
    """least: whether `measured` must be at least (else: below) `wanted`. measured: None where it was not. met: None
    where it was not measured, or the mark is another card's."""

    name: str
    wanted: float
    measured: float | None
    least: bool = True
    applies: bool = True

    @property
    def met(self) -> bool | None:
        if self.measured is None or not self.applies:
            return None
        return self.measured >= self.wanted if self.least else self.measured < self.wanted


def bars(report: Report) -> Iterator[Bar]:
    """report: of `gpu.json`, complete or not; `{}` gives the marks alone."""
    card = str(report.get("machine", {}).get("gpu", ""))
    h200 = "H200" in card
    share = decode_share(report, "int8", 1)
    yield Bar("int8 decode at batch 1: share of the copy bandwidth", 0.80, share)
    yield Bar("the same, beside gpt-fast's share on an A100", GPT_FAST_SHARE, share)
    yield Bar("int8 decode at batch 1 over plain PyTorch, compiled", 1.0, peer_ratio(report))
    for precision in ("int8", "fp8"):
        ttft = milli(time_to_first(report, precision, 512))
        yield Bar(f"TTFT of 512 tokens, {precision}, on an H200: ms", 60.0, ttft, least=False, applies=h200)
    for batch in (32, 128):
        yield Bar(f"FP8 over int8, decode steps/s at batch {batch}", 1.0, speed_ratio(report, "fp8", "int8", batch))
    yield Bar("4-bit over int8, decode steps/s at batch 1", 1.0, speed_ratio(report, "awq", "int8", 1))
    for kv_cache in ("16bit", "fp8"):
        found = attention_share(report, kv_cache, 16, 4096)
        yield Bar(f"decode attention, batch 16, context 4,096, {kv_cache} KV: share of the copy bandwidth", 0.80, found)
    nvidia = next((value for name, value in NVIDIA_TOKENS_PER_S.items() if name in card), None)
    best = best_throughput(report, 128, 128)
    reached = None if best is None or nvidia is None else best[0] / nvidia
    yield Bar("128 in, 128 out, best batch: tokens/s over NVIDIA's on this card", 0.4, reached)
    yield Bar("the same, further", 0.6, reached)


def decode_share(report: Report, precision: str, batch: int) -> float | None:
    """Of the copy bandwidth, at 512 in and 128 out."""
    return median(step_share(report, one) for one in loads(report, precision, batch, 512, 128))


def step_share(report: Report, entry: Mapping[str, Any]) -> float | None:
    """Bytes that a step must read, over its time, of the copy bandwidth."""
    seconds = entry.get("step_s", entry.get("seconds"))
    copy = report.get("ceilings", {}).get("copy_bytes_per_s")
    return entry["step_bytes"] / seconds / copy if seconds and copy else None


def speed_ratio(report: Report, precision: str, other: str, batch: int) -> float | None:
    found = [median(one["step_s"] for one in loads(report, name, batch, 512, 128)) for name in (other, precision)]
    return found[0] / found[1] if found[0] and found[1] else None


def peer_ratio(report: Report) -> float | None:
    """Our step at batch 1 through the whole engine, beside the peer's step alone."""
    ours = median(one["step_s"] for one in loads(report, "int8", 1, 512, 128))
    theirs = median(one["seconds"] for one in report.get("peers", ()))
    return theirs / ours if ours and theirs else None


def attention_share(report: Report, kv_cache: str, batch: int, context: int) -> float | None:
    copy = report.get("ceilings", {}).get("copy_bytes_per_s")
    for one in report.get("attention", ()):
        if copy and (one["kv_cache"], one["batch"], one["context"], one["query"]) == (kv_cache, batch, context, 1):
            return float(one["bytes"] / one["seconds"] / copy)
    return None


def time_to_first(report: Report, precision: str, tokens: int) -> float | None:
    for one in report.get("prefill", ()):
        if (one["precision"], one["tokens"]) == (precision, tokens):
            return median(one["ttft_s"])
    return None


def best_throughput(report: Report, input_tokens: int, output_tokens: int) -> tuple[float, str, int] | None:
    """Output tokens/s, precision and batch."""
    found = [
        (one["tokens_per_s"], one["precision"], one["batch"])
        for one in report.get("loads", ())
        if (one["input"], one["output"]) == (input_tokens, output_tokens)
    ]
    return max(found, default=None)


def loads(report: Report, precision: str, batch: int, input_tokens: int, output_tokens: int) -> list[Report]:
    key = precision, batch, input_tokens, output_tokens
    return [one for one in report.get("loads", ()) if tuple(map(one.get, LOAD_KEY)) == key]


LOAD_KEY = ("precision", "batch", "input", "output")


def median(values: Any) -> float | None:
    """Of those that are there; None for none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def milli(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def bar_rows(report: Report) -> list[tuple[str, str, str, str]]:
    rows = [("mark", "wanted", "measured", "met")]
    for bar in bars(report):
        sign = "at least" if bar.least else "below"
        measured = "–" if bar.measured is None else f"{bar.measured:.2f}"
        rows.append((bar.name, f"{sign} {bar.wanted:g}", measured, VERDICTS[bar.met]))
    return rows


VERDICTS: dict[bool | None, str] = {True: "yes", False: "no", None: "–"}


def bars_text(report: Report) -> str:
    rows = bar_rows(report)
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {wanted:>14}  {measured:>9}  {met:>4}" for name, wanted, measured, met in rows)
