"""What a run has finished so far, on disk, so that the next one can go on from there."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """A JSON Lines file: first the key, which says what is being made, then one line per finished step.

    A line counts once its newline is there: what a killed run left of its last line is cut off. key is None and entries
    is empty until `begin` when there is no such file yet.
    """

    def __init__(self, path: Path) -> None:
        self.key: Any = None
        self.entries: dict[str, Any] = {}  # the record of each step
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, self._read(path.read_bytes()))

    def begin(self, key: Any) -> None:
        """Forgets everything and starts with this key."""
        os.ftruncate(self._file, 0)
        self.key, self.entries = key, {}
        self._append({"key": key})

    def append(self, step: str, record: Any) -> None:
        """On disk when this returns. Call it only after everything that belongs to the step is there too."""
        self._append({"step": step, "record": record})
        self.entries[step] = record

    def _read(self, data: bytes) -> int:
        """Takes the lines over, and returns the bytes of those that are whole."""
        kept = 0
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if kept == 0:
                    self.key = entry["key"]
                else:
                    self.entries[entry["step"]] = entry["record"]
            except (ValueError, KeyError, TypeError):  # torn by a power failure
                break
            kept += len(line)
        return kept

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._file)
