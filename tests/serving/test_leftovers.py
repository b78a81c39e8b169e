"""What a killed launcher left is cleared away; what belongs to one that lives is not touched."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mixtral_serving.counters import Counters
from mixtral_serving.server.leftovers import SHM, hold, remove_files, remove_leftovers

PATIENCE_S = 20.0
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def prefix() -> Iterator[str]:
    """Of a server whose launcher has this process's id, as after a container's restart: everything has it again."""
    name = f"mixtral-{os.getpid()}-{time.monotonic_ns():x}-"
    yield name
    remove_files(name)


def leave(prefix: str) -> Path:
    """The files of a server. Returns a piece of its shared memory."""
    Counters(SHM / f"{prefix}counters").close()
    region = SHM / f"{prefix}region"
    region.write_bytes(b"x")
    return region


def test_processes_and_files_of_a_dead_launcher_go(prefix: str) -> None:
    region = leave(prefix)
    stub = subprocess.Popen([sys.executable, "-c", SLEEP, region.name])
    other = subprocess.Popen([sys.executable, "-c", SLEEP, "mixtral-1-1-region"])
    try:
        assert remove_leftovers() >= 1
        stub.wait(PATIENCE_S)
        assert other.poll() is None
        assert not list(SHM.glob(f"{prefix}*"))
    finally:
        other.kill()
        other.wait()


def test_a_launcher_that_holds_its_counters_lives(prefix: str) -> None:
    descriptor = hold(SHM / f"{prefix}counters")
    region = leave(prefix)
    remove_leftovers()
    assert region.exists()
    os.close(descriptor)
    remove_leftovers()
    assert not region.exists()


def test_a_server_about_to_start_is_not_mistaken_for_a_dead_one(prefix: str) -> None:
    counters = SHM / f"{prefix}counters"
    counters.touch()  # made, and not locked yet
    remove_leftovers()
    assert counters.exists()


def test_a_process_id_that_lives_is_left_alone_even_without_a_lock() -> None:
    parent = psutil.Process().ppid()
    prefix = f"mixtral-{parent}-{time.monotonic_ns():x}-"
    region = leave(prefix)
    try:
        remove_leftovers()
        assert region.exists()
    finally:
        remove_files(prefix)


def test_a_server_started_by_hand_is_nobodys() -> None:
    path = SHM / "mixtral-server-1-counters"
    Counters(path).close()
    try:
        remove_leftovers()
        assert path.exists()
    finally:
        path.unlink()
