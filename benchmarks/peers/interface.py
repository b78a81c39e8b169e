"""What every peer offers, and how a run of it is measured.

A peer lives in a process of its own: two of them would share one OpenMP runtime, and a crash would end them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Prompt = Sequence[int]


class PeerUnavailable(Exception):
    """This peer cannot run here; the sentence says why. The others go on without it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """threads: for arithmetic, the same for every peer. max_sequences, max_tokens: the largest batch, and the longest
    sequence with its output. folder: for what a peer writes. weights: what was made of the model for this peer before,
    an engine directory or a GGUF file; without it the peer makes it."""

    model: Path
    threads: int
    max_sequences: int
    max_tokens: int
    folder: Path
    weights: Path | None = None


@dataclass(slots=True)
class Trace:
    """One batch: its prompts came at `begun`, tokens[i] is what sequence i got, times[i] when (one time a token;
    several tokens of one response share theirs). All times in seconds of one monotonic clock."""

    begun: float
    tokens: list[list[int]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)

    @classmethod
    def start(cls, begun: float, sequences: int) -> "Trace":
        return cls(begun, [[] for _ in range(sequences)], [[] for _ in range(sequences)])

    def add(self, sequence: int, tokens: Sequence[int], time: float) -> None:
        self.tokens[sequence].extend(tokens)
        self.times[sequence].extend([time] * len(tokens))


class Peer(Protocol):
    """Greedy decoding of exactly `output_tokens` tokens, end tokens included like any other."""

    def describe(self) -> dict[str, Any]:
        """Versions, weights' precision and whatever else decides the speed."""

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        """All prompts at once; they are of one length. Nothing computed for one call helps a later one."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one batch. ttft_s: median over its sequences. decode_tokens_per_s: tokens of all sequences after every one
    has its first, over the time from then to the last. total_tokens_per_s: prompt and output tokens of all over the
    whole time."""

    ttft_s: float
    decode_tokens_per_s: float
    total_tokens_per_s: float


def figures(trace: Trace, input_tokens: int) -> Figures:
    """input_tokens: of one prompt."""
    first = sorted(times[0] for times in trace.times)
    middle = len(first) // 2
    ttft = first[middle] if len(first) % 2 else (first[middle - 1] + first[middle]) / 2
    all_there, last = first[-1], max(times[-1] for times in trace.times)
    later = sum(time > all_there for times in trace.times for time in times)
    tokens = sum(input_tokens + len(got) for got in trace.tokens)
    return Figures(
        ttft - trace.begun,
        later / (last - all_there) if later else 0.0,
        tokens / (last - trace.begun),
    )
