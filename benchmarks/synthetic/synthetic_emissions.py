"""When the synthetic engine made each token, in a file that a benchmark on the same machine reads while it runs.

Every running request gets exactly one token a step. So one time per step and, per request, the step of its first token
say it all, and recording costs one write a step, whatever the number of streams.

Layout, all uint64, little endian: MAGIC, steps that fit, requests that fit, requests so far; a ring of the steps' end
times, `CLOCK_MONOTONIC` in nanoseconds (Python's `time.monotonic_ns`, the same in every process), step n at n modulo
the capacity; a ring of requests: the prompt's key, the step of the first token (the first step is 1), tokens made
(0 while it runs), time of submission.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from synthetic_tokens import prompt_key

MAGIC = 0x4E4F495353494D45  # "EMISSION"
STEPS, REQUESTS = 1 << 20, 1 << 16  # what the rings hold, in 10 MB: hours at 100 steps a second
_HEADER, _REQUEST = 4, 4

Array = npt.NDArray[np.uint64]


class EmissionWriter:
    """The engine's side. Replaces what is at `path`."""

    def __init__(self, path: Path, steps: int = STEPS, requests: int = REQUESTS) -> None:
        path.unlink(missing_ok=True)  # a reader of the old file keeps it
        shape = (_HEADER + steps + _REQUEST * requests,)
        words: Any = np.memmap(path, np.uint64, "w+", shape=shape)
        self._header, self._steps, self._requests = _parts(words, steps, requests)
        self._header[1:3] = steps, requests
        self._header[0] = MAGIC

    def step(self, number: int, time_ns: int) -> None:
        self._steps[number % len(self._steps)] = time_ns

    def begin(self, key: int, first_step: int, submitted_ns: int) -> int:
        """A request got its first token. Returns the slot for `end`."""
        count = int(self._header[3])
        slot = count % len(self._requests)
        self._requests[slot] = key, first_step, 0, submitted_ns
        self._header[3] = count + 1
        return slot

    def end(self, slot: int, tokens: int) -> None:
        self._requests[slot, 2] = tokens


@dataclass(frozen=True, slots=True)
class Emission:
    """One finished request. times_ns: [tokens] int64, when each was made; submitted_ns: when the engine got it."""

    submitted_ns: int
    times_ns: npt.NDArray[np.int64]


def read_emissions(path: Path, prompt_ids: Sequence[int]) -> list[Emission]:
    """The finished requests with this prompt that the file still holds, in the order of their first tokens.

    Raises ValueError when the file is something else, or the ring of steps has overwritten a request's times.
    """
    words: Any = np.memmap(path, np.uint64, "r")
    if len(words) < _HEADER or words[0] != MAGIC:
        raise ValueError(f"{path} is no record of emissions")
    header, steps, requests = _parts(words, int(words[1]), int(words[2]))
    count = int(header[3])
    slots = [number % len(requests) for number in range(max(0, count - len(requests)), count)]
    found = requests[slots]
    found = found[(found[:, 0] == np.uint64(prompt_key(prompt_ids))) & (found[:, 2] > 0)]
    return [_emission(path, steps, *(int(value) for value in row[1:])) for row in found]


def _emission(path: Path, steps: Array, first: int, tokens: int, submitted_ns: int) -> Emission:
    times = steps[np.arange(first, first + tokens) % len(steps)].astype(np.int64)
    if tokens > len(steps) or times[0] < submitted_ns or (np.diff(times) < 0).any():
        raise ValueError(f"{path} holds {len(steps)} steps, and those of a request were overwritten; read it sooner")
    return Emission(submitted_ns, times)


def _parts(words: Array, steps: int, requests: int) -> tuple[Array, Array, Array]:
    rest = words[_HEADER:]
    return words[:_HEADER], rest[:steps], rest[steps:].reshape(requests, _REQUEST)
