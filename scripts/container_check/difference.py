"""A difference between what was recorded of TensorRT-LLM and what is there, and whether it matters to this project."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from container_check.check import Failed, Outcome


class Weight(IntEnum):
    """AFFECTS_US: something that we use is gone or means something else. NOTE: worth knowing, such as another value
    for what we leave to the library. HARMLESS: nothing of ours touches it."""

    AFFECTS_US = 0
    NOTE = 1
    HARMLESS = 2


LABELS = {Weight.AFFECTS_US: "affects us", Weight.NOTE: "note", Weight.HARMLESS: "harmless"}


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    weight: Weight
    text: str

    def __str__(self) -> str:
        return f"{LABELS[self.weight]}: {self.text}"


def outcome(differences: Sequence[Difference], compared: str, advice: str) -> Outcome:
    """Fails when one of them affects us. compared: how much was looked at."""
    lines = [str(difference) for difference in sorted(differences)]
    affecting = sum(difference.weight == Weight.AFFECTS_US for difference in differences)
    if affecting:
        raise Failed(*lines, compared, advice=advice)
    return Outcome.passed(*lines, compared)
