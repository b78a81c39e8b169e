"""What this process holds of the machine's memory."""

from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
KIB, GB = 1024, 10**9


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that are in memory. anonymous: the process's own, which only swapping can move. mapped: pages of files, the
    mapped weights among them, which the kernel drops when memory is short and reads again. peak: the most that both
    had together so far."""

    anonymous: int
    mapped: int
    peak: int

    def __str__(self) -> str:
        own, mapped, peak = (f"{size / GB:.2f} GB" for size in (self.anonymous, self.mapped, self.peak))
        return f"{own} of its own, {mapped} of mapped files, {peak} at most so far"


def process_memory() -> ProcessMemory:
    """Now. Where the system does not tell the two apart, all counts as anonymous."""
    if not STATUS.is_file():
        resident = psutil.Process().memory_info().rss
        return ProcessMemory(resident, 0, resident)
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    sizes = {name: int(lines[name].split()[0]) * KIB for name in ("RssAnon", "RssFile", "RssShmem", "VmHWM")}
    return ProcessMemory(sizes["RssAnon"] + sizes["RssShmem"], sizes["RssFile"], sizes["VmHWM"])
