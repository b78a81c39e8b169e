"""Running a program as a child process and watching what it takes."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.01


@dataclass(frozen=True)
class Usage:
    """peak_anonymous_bytes: largest RssAnon seen, sampled every SAMPLE_S; pages of mapped files are not in it, because
    the kernel drops them when memory is short. cpu_s: of all threads, user and system."""

    wall_s: float
    cpu_s: float
    peak_anonymous_bytes: int


def run_watched(command: Sequence[str | Path]) -> Usage:
    """Raises RuntimeError with what the program wrote to stderr when it fails."""
    before = os.times()
    begun = time.perf_counter()
    peak = 0
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(SAMPLE_S)
        wall = time.perf_counter() - begun
        assert process.stderr is not None
        errors = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with {process.returncode}:\n{errors}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(wall, cpu, peak)


def drop_from_page_cache(paths: Sequence[Path]) -> None:
    """So that the next reader finds them on the disk, as a model larger than the memory is found."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # a page that is not written yet cannot be dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024 if "RssAnon" in lines else 0
