"""What a comparison with peers says: ratios of alternated rounds, and a table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peers.interface import Figures

METRICS = {
    "ttft_s": "seconds from sending the batch to the first token, median of its sequences",
    "decode_tokens_per_s": "output tokens of all sequences per second, once every one has its first",
    "total_tokens_per_s": "prompt and output tokens of all sequences over the whole time",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a peer's tokens look to the judge, given the same tokens before each. same: share that it would have chosen.
    Regret: how much less likely a token is than the likeliest, in nats; 0 for the same one."""

    same: float
    mean_regret_nats: float
    worst_regret_nats: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our figure over the peer's of the same round, over all rounds. Above 1 we are faster, with ttft_s slower."""

    peer: str
    concurrency: int
    metric: str
    median: float
    min: float
    max: float


def ratios(measured: Mapping[tuple[str, int], Sequence[Figures]], ours: str) -> Iterator[Ratio]:
    """Of every other peer, at each concurrency, for each metric. A figure of 0 (no decode phase) has none."""
    for (name, concurrency), theirs in measured.items():
        if name == ours:
            continue
        for metric in METRICS:
            pairs = zip(measured[ours, concurrency], theirs, strict=True)
            values = [getattr(a, metric) / getattr(b, metric) for a, b in pairs if getattr(b, metric)]
            if values:
                yield Ratio(name, concurrency, metric, statistics.median(values), min(values), max(values))


def table(report: Mapping[str, Any]) -> str:
    """Of a result file: medians of every peer, and below them the ratios with their range."""
    lines = [f"{'concurrency':>11}  {'peer':<13}{'TTFT, ms':>9}{'decode tokens/s':>17}{'total tokens/s':>16}"]
    for row in report["measurements"]:
        ttft, decode, total = (statistics.median(found[name] for found in row["rounds"]) for name in METRICS)
        lines.append(f"{row['concurrency']:>11}  {row['peer']:<13}{ttft * 1000:>9.1f}{decode:>17.0f}{total:>16.0f}")
    lines.append(f"\n{'concurrency':>11}  {'ours / peer':<13}{'metric':<22}{'median':>7}{'range':>14}")
    for ratio in report["ratios"]:
        spread = f"{ratio['min']:.2f}-{ratio['max']:.2f}"
        line = f"{ratio['concurrency']:>11}  {ratio['peer']:<13}{ratio['metric']:<22}{ratio['median']:>7.2f}"
        lines.append(f"{line}{spread:>14}")
    lines += [f"{name} was left out: {reason}" for name, reason in report["skipped"].items()]
    return "\n".join(lines)
