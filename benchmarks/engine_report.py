"""What the rounds of `engine.py` say: ratios of figures of the same round, with their spread, and a table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["decode", "prefill"]
OURS = ("int8", "int8 steps", "fp8", "awq", "16bit")
LLAMA, TRANSFORMERS, MEMORY = "llama.cpp", "transformers", "memory"
PEERS = (LLAMA, TRANSFORMERS)
# What each is stored in, of `step_bytes`.
PRECISIONS = {**{name: name.split()[0] for name in OURS}, LLAMA: "Q8_0", TRANSFORMERS: "16bit", MEMORY: "int8"}


@dataclass(frozen=True, slots=True)
class Spread:
    """Over the rounds."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """values: at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[-1])


@dataclass(frozen=True, slots=True)
class Measurement:
    """size: sequences decoded together, or tokens of the prompt. tokens_per_s: of all sequences, one figure a round.
    step_bytes: of weights that a decode step of this size reads, or the whole prompt if it were one step."""

    model: str
    phase: Phase
    size: int
    runner: str
    tokens_per_s: list[float]
    step_bytes: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """tokens/s of `runner` over those of `peer`, round by round. For the peer `memory`: share of the speed at which
    the machine reads the bytes that this runner's weights need."""

    model: str
    phase: Phase
    size: int
    runner: str
    peer: str
    ratio: Spread


def ratios(measurements: Sequence[Measurement]) -> Iterator[Ratio]:
    """Of every engine to llama.cpp, to transformers and to our own 16 bit, and of its decode to the memory's speed."""
    groups: dict[tuple[str, Phase, int], dict[str, Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.model, one.phase, one.size), {})[one.runner] = one
    for (model, phase, size), by_runner in groups.items():
        for runner, one in by_runner.items():
            for peer in (*PEERS, "16bit", MEMORY):
                other = by_runner.get(peer)
                if other is None or runner in (peer, MEMORY) or (runner in PEERS and peer != MEMORY):
                    continue
                scale = 1.0
                if peer == MEMORY:
                    if phase == "prefill":  # arithmetic is the limit there
                        continue
                    scale = one.step_bytes / other.step_bytes
                pairs = zip(one.tokens_per_s, other.tokens_per_s, strict=True)
                yield Ratio(model, phase, size, runner, peer, Spread.of([scale * a / b for a, b in pairs]))


def table(report: Mapping[str, Any]) -> str:
    """Of a result file: a line for each case and runner."""
    found: dict[tuple[object, ...], Mapping[str, float]] = {
        (r["model"], r["phase"], r["size"], r["runner"], r["peer"]): r["ratio"] for r in report["ratios"]
    }
    head = ("model", "phase", "size", "runner", "tokens/s", "/ llama.cpp", "/ transformers", "of memory")
    lines = ["{:<8}{:<9}{:>5}  {:<13}{:>9}{:>20}{:>20}{:>20}".format(*head)]
    for one in report["measurements"]:
        key = one["model"], one["phase"], one["size"], one["runner"]
        cells = [_cell(found.get((*key, peer))) for peer in (*PEERS, MEMORY)]
        speed = statistics.median(one["tokens_per_s"])
        lines.append("{:<8}{:<9}{:>5}  {:<13}{:>9.1f}{:>20}{:>20}{:>20}".format(*key, speed, *cells))
    return "\n".join(lines)


def _cell(ratio: Mapping[str, float] | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"
