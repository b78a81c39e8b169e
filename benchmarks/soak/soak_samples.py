"""What the server holds at a moment: per process, in shared memory, and in its own tables."""

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

# Gauges of /metrics that count what is held for requests: zero when nothing is asked.
TABLES = (
    "mixtral_requests_running",
    "mixtral_requests_waiting",
    "mixtral_streams_live",
    "mixtral_kv_cache_blocks_used",
    "mixtral_detokenizer_streams",
    "mixtral_detokenizer_stopping",
)
_GAUGE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_ANONYMOUS = re.compile(r"^(?:Anonymous|Swap): +(\d+) kB$", re.MULTILINE)
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class ProcessSample:
    """rss, anonymous: bytes; anonymous is what the process allocated or wrote, in memory and swapped out.

    Clean pages of files are not in it, as they are in USS: libraries that no other process has mapped are a process's
    own there, so another server on the machine that comes and goes moves it by their size, 27 MiB for Triton's."""

    rss: int
    anonymous: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """at_s: since the start of the soak. resting: nothing was asked. shm_bytes: what the segments take."""

    at_s: float
    resting: bool
    processes: dict[str, ProcessSample]
    shm_segments: int
    shm_bytes: int
    tables: dict[str, float]


class Watch:
    """Samples the server process `pid` with its stubs and the segments of its user that belong to it."""

    def __init__(self, pid: int, metrics_url: str) -> None:
        self._parent = psutil.Process(pid)
        self._metrics_url = metrics_url

    def sample(self, at_s: float, *, resting: bool) -> Sample:
        """Raises psutil.NoSuchProcess or OSError when a process of the server is gone."""
        segments = self._segments()
        return Sample(
            at_s,
            resting,
            {name: _sample(process) for name, process in self.processes().items()},
            len(segments),
            sum(path.stat().st_size for path in segments),
            self.tables(),
        )

    def processes(self) -> dict[str, psutil.Process]:
        """The server and its stubs, by model."""
        named = {"server": self._parent}
        for child in self._parent.children(recursive=True):
            command = child.cmdline()
            if any(_STUB in part for part in command[:1]):
                named[Path(command[1]).parents[1].name] = child
        return named

    def tables(self) -> dict[str, float]:
        with urllib.request.urlopen(self._metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in _GAUGE.findall(text) if name in TABLES}

    def _segments(self) -> list[Path]:
        """Those that the server's processes have mapped or that bear its stubs' prefix."""
        prefixes = {part for process in self.processes().values() for part in process.cmdline()[2:3]}
        stems = {prefix.rsplit("-", 5)[0] for prefix in prefixes if prefix.startswith("mixtral-")}
        return [path for path in Path("/dev/shm").iterdir() if any(path.name.startswith(stem) for stem in stems)]


def held(tables: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in tables.items() if value}


def _sample(process: psutil.Process) -> ProcessSample:
    return ProcessSample(
        process.memory_info().rss, anonymous_bytes(process.pid), process.num_fds(), process.num_threads()
    )


def anonymous_bytes(pid: int) -> int:
    """Heaps, stacks and written pages of private mappings. Raises OSError when the process is gone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) * 1024 for kib in _ANONYMOUS.findall(rollup))
