"""What the tests of faults saw, as rows of the table in docs/reliability.md.

With MIXTRAL_FAULTS=FILE in the environment (`make bench-faults`) the rows are written there, in the order of the tests.
"""

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
from known_stream import KnownStream


@dataclass(frozen=True)
class Row:
    """seen: what the affected clients got. seen_after_s: the last of them, from the fault on. back_after_s: until a new
    request was answered by a healthy server; None where service never stopped, or ended. lost: in words."""

    fault: str
    seen: str
    seen_after_s: float
    back_after_s: float | None
    ended: bool
    lost: str


_rows: list[Row] = []


class Fault:
    """Made at the moment of the fault."""

    def __init__(self, name: str) -> None:
        self._name, self._at = name, time.monotonic()

    def record(self, affected: list[KnownStream], lost: str, *, back: bool = False, ended: bool = False) -> None:
        """Once all affected streams have ended. back: service stopped, and is back now. ended: it stopped for good."""
        seen = sorted({_plain(str(stream.error or stream.finish_reason)) for stream in affected})
        after = max((stream.ended_at - self._at for stream in affected), default=0.0)
        back_after = round(time.monotonic() - self._at, 1) if back else None
        _rows.append(Row(self._name, "; ".join(seen) or "nothing", round(max(after, 0.0), 1), back_after, ended, lost))
        if path := os.environ.get("MIXTRAL_FAULTS"):
            report = {"machine": machine.describe(("nvidia-pytriton",)), "faults": [asdict(row) for row in _rows]}
            Path(path).write_text(json.dumps(report, indent=1) + "\n")


def _plain(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"127\.0\.0\.1:\d+", "the server", text)
    return re.sub(r"^(lost the connection to the server): .*", r"\1", text)
