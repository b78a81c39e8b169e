"""The result file of a run on a GPU: written after every part, so that a killed run leaves what it had."""

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Record:
    """A JSON object that grows. Parts run within a time budget; what fails is written down, and the rest goes on."""

    def __init__(self, path: Path | None, head: Mapping[str, Any], budget_s: float) -> None:
        """path: None keeps it in memory. head: what it begins with. budget_s: counted from now."""
        self.data: dict[str, Any] = {"complete": False, "parts": [], **head}
        self._path = path
        self._begun = time.monotonic()
        self._budget_s = budget_s
        self.save()

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def left_s(self) -> float:
        return self._budget_s - (time.monotonic() - self._begun)

    @property
    def failed(self) -> list[str]:
        return [part["name"] for part in self.data["parts"] if part["error"]]

    def add(self, kind: str, entry: Mapping[str, Any]) -> None:
        self.data.setdefault(kind, []).append(dict(entry))
        self.save()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Runs its block; an exception is recorded and goes no further."""
        begun, error = time.monotonic(), None
        self.say(name)
        try:
            yield
        except OutOfTime as raised:
            self.leave_out(name, str(raised))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            traceback.print_exc()
            self.say(f"{name}: {error}")
        spent = time.monotonic() - begun
        self.data["parts"].append({"name": name, "seconds": round(spent, 2), "error": error})
        self.save()

    def need(self, seconds: float) -> None:
        """Raises OutOfTime when less is left."""
        if (left := self.left_s) < seconds:
            raise OutOfTime(f"{left:.0f} s are left of {self._budget_s:.0f}, this takes about {seconds:.0f}")

    def leave_out(self, what: str, reason: str) -> None:
        self.say(f"{what} is left out: {reason}")
        self.add("left_out", {"what": what, "reason": reason})

    def finish(self) -> None:
        self.data["complete"] = True
        self.data["seconds"] = round(time.monotonic() - self._begun, 1)
        self.save()

    def say(self, text: str) -> None:
        spent = time.monotonic() - self._begun
        print(f"[{spent:5.0f} s of {self._budget_s:.0f}] {text}", file=sys.stderr, flush=True)

    def save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


class OutOfTime(Exception):
    """The budget does not suffice for a part."""
