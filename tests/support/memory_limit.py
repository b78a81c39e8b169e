"""A control group that limits the memory of a process, its share of the page cache included: a small machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The files to write: the limit in bytes, then the process's id."""

    limit: Path
    processes: Path


@contextmanager
def memory_limit(name: str) -> Iterator[MemoryLimit]:
    """Skips the test where such a group cannot be made. Its processes must have ended when the block does."""
    first_version = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if first_version else ROOT) / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be made here: {error.strerror}")
    try:
        limit = folder / ("memory.limit_in_bytes" if first_version else "memory.max")
        if not os.access(limit, os.W_OK):
            pytest.skip("this machine's control groups do not limit memory")
        yield MemoryLimit(limit, folder / "cgroup.procs")
    finally:
        folder.rmdir()
