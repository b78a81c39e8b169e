"""Reads, over and over, what every process of the machine shows of itself, in search of what nobody may see."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SHOWN = ("cmdline", "environ")  # the first to every user, the second to the same one


class ProcessWatch:
    """While it is entered, `seen` collects (process id, file) wherever one of the secrets stood."""

    def __init__(self, *secrets: str) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.rounds = 0
        self._secrets = [secret.encode() for secret in secrets]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            for folder in Path("/proc").glob("[0-9]*"):
                for name in _SHOWN:
                    try:
                        shown = (folder / name).read_bytes()
                    except OSError:  # it ended, or belongs to another user
                        continue
                    if any(secret in shown for secret in self._secrets):
                        self.seen.add((folder.name, name))
            self.rounds += 1
            time.sleep(0.005)  # the server that is watched needs the processor too
