"""Whether a soak was passed: rules that are stated, so that they can also fail.

Everything is judged on the samples at rest, when no request is held, after the first third of the rounds (warm-up).
What a series gained is the slope of Theil and Sen (the median of the slopes of all pairs of points, Sen 1968: single
outliers do not move it) times the time that the judged samples span.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

WARM_UP = 1 / 3
MEMORY_BYTES = 4 * 2**20  # the gain of memory that is allowed: this, or this share of the process where that is more
MEMORY_SHARE = 0.03
# A pool of shared memory grows by 1 MiB when more is under way than ever before.
GAINS = {"descriptors": 1.0, "threads": 2.0, "shm_segments": 0.0, "shm_bytes": 2.0**20}
# Of the killed clients, whose socket this Triton keeps when they die just after an error: 8 of 332 in fifteen minutes,
# with threads and memory constant. A descriptor lost with each request would be hundreds of times the limit.
KILLED_SHARE = 0.03


def gain(points: Sequence[tuple[float, float]]) -> float:
    """points: time and value. What the values gained over the time they span; 0 for fewer than two points."""
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s]
    if not slopes:
        return 0.0
    return statistics.median(slopes) * (points[-1][0] - points[0][0])


def verdict(
    samples: Sequence[Mapping[str, Any]], wrong: Mapping[str, int], asked: Mapping[str, int], killed: int = 0
) -> list[str]:
    """samples: as JSON has them. wrong, asked: requests by fault and by kind. killed: clients. One sentence per failed
    rule; none when the soak was passed."""
    failures = [f"{count} answers with the fault `{name}`" for name, count in sorted(wrong.items()) if count]
    if not sum(asked.values()):
        failures.append("nothing was asked")
    resting = [sample for sample in samples if sample["resting"]]
    judged = resting[int(len(resting) * WARM_UP) :]
    if len(judged) < 2:
        return [*failures, f"only {len(judged)} samples at rest after the warm-up, two are needed"]
    for sample in resting:
        for table, value in sample["tables"].items():
            if value:
                failures.append(f"{table} is {value:g} at rest after {sample['at_s']:.0f} s")
    return failures + _gains(judged, GAINS | {"descriptors": GAINS["descriptors"] + KILLED_SHARE * killed})


def _gains(judged: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> list[str]:
    failures = []
    names = {frozenset(sample["processes"]) for sample in judged}
    if len(names) > 1:
        failures.append("the server's processes are not the same at all times")
    for process in sorted(frozenset.intersection(*names)):
        for what in ("anonymous", "descriptors", "threads"):
            points = [(sample["at_s"], sample["processes"][process][what]) for sample in judged]
            allowed = limits.get(what) or max(MEMORY_BYTES, MEMORY_SHARE * statistics.median(v for _, v in points))
            if (gained := gain(points)) > allowed:
                failures.append(f"{what} of {process} gained {gained:.4g}, the limit is {allowed:.4g}")
    for what in ("shm_segments", "shm_bytes"):
        gained = gain([(sample["at_s"], float(sample[what])) for sample in judged])
        if gained > limits[what]:
            failures.append(f"{what} gained {gained:.4g}, the limit is {limits[what]:.4g}")
    return failures
