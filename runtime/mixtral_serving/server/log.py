"""Triton's own log on its way to the operator: what matters is shown, and why a start failed is remembered."""

import re
import threading
from typing import IO

# Said on every machine without a GPU, and of no consequence there; the last when the server is told to stop.
_HARMLESS = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient",
    "CUDA memory pool disabled",
    "DCGM unable to start",
    "Failed to initialize NVML",
    "failed to allocate pinned system memory",
    "Signal (",
)
_INFO = re.compile(r"I\d{4} |[+|]|\s*$|\s*At:|\s+/")  # info lines, tables, blank lines, the paths of a traceback
_FAILURE = re.compile(r"failed to load '(?P<model>\w+)' version 1: \w[\w ]*: (?:\w+: )?(?P<reason>.*?)(?:\\n|$)")


def is_shown(line: str) -> bool:
    """Whether an operator who did not ask for everything sees this line: warnings and errors that mean something."""
    return not _INFO.match(line) and not any(harmless in line for harmless in _HARMLESS)


def load_failure(line: str) -> str | None:
    """The reason in a line that says a model could not be loaded, as `model: sentence`."""
    found = _FAILURE.search(line)
    return f"{found['model']}: {found['reason']}" if found else None


class LogRelay:
    """Copies a server's output to `target` until it ends. `failure` is why the first model could not be loaded."""

    def __init__(self, source: IO[str], target: IO[str], verbose: bool) -> None:
        self.failure: str | None = None
        self._source, self._target, self._verbose = source, target, verbose
        self._thread = threading.Thread(target=self._copy, name="server-log", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for the last lines of a server that ended."""
        self._thread.join(timeout_s)

    def _copy(self) -> None:
        for line in self._source:
            reason = load_failure(line)
            self.failure = self.failure or reason
            if self._verbose or (is_shown(line) and not reason):
                self._target.write(line)
                self._target.flush()
