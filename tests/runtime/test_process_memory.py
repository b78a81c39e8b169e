"""What a process says of its memory: its own and that of mapped files apart."""

import logging
import mmap
from pathlib import Path

import numpy as np
import pytest

from mixtral_runtime.process_memory import ProcessMemory, process_memory

SIZE = 64 << 20
SLACK = 8 << 20  # what the interpreter itself may take or give back meanwhile


def test_what_a_process_writes_is_its_own() -> None:
    before = process_memory()
    with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # an allocator may have some left
        pages.write(b"x" * SIZE)
        after = process_memory()
    assert after.anonymous - before.anonymous == pytest.approx(SIZE, abs=SLACK)
    assert abs(after.mapped - before.mapped) < SLACK


def test_a_mapped_file_is_not_and_counts_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    before = process_memory()
    assert int(mapped.sum()) == 0
    after = process_memory()
    assert after.mapped - before.mapped == pytest.approx(SIZE, abs=SLACK)
    assert abs(after.anonymous - before.anonymous) < SLACK
    assert after.peak >= before.mapped + SIZE - SLACK


def test_it_reads_well_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("memory").info("%s", ProcessMemory(410_000_000, 47_000_000_000, 47_500_000_000))
    assert caplog.messages == ["0.41 GB of its own, 47.00 GB of mapped files, 47.50 GB at most so far"]
