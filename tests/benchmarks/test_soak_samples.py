"""Memory that the soak judges is what a process allocated, and not the files that it has mapped."""

import mmap
import os
from pathlib import Path

from soak_samples import anonymous_bytes

MIB = 2**20
SIZE = 32 * MIB


def test_what_is_allocated_counts_and_what_is_mapped_from_a_file_does_not(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(bytes(SIZE))
    before = anonymous_bytes(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[:: mmap.PAGESIZE]) == 0  # all of them are in memory now
        assert abs(anonymous_bytes(os.getpid()) - before) < SIZE // 4
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for at in range(0, SIZE, mmap.PAGESIZE):
            block[at] = 1
        assert anonymous_bytes(os.getpid()) - before > SIZE * 3 // 4
