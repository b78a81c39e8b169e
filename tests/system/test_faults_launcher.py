"""What becomes of a server whose launcher is told to stop, runs out of restarts or of shared memory, or is killed."""

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fault_table import Fault
from supervised_server import LIMITS, PATIENCE_S, SupervisedServer, small_shared_memory
from system_server import free_address

from mixtral_client import ServerUnreachable
from mixtral_serving.server.installation import unsupported_platform

pytestmark = pytest.mark.skipif(unsupported_platform() is not None, reason=str(unsupported_platform()))

ENGINE = {"step_s": 0.02}
SUPERVISION = {"canary_interval_s": 1.0, "canary_timeout_s": 20.0, "max_restarts": 0}
SLOTS = 4
ENDLESS = 10_000  # tokens
NO_MOUNT = "a /dev/shm of another size cannot be mounted here"


def left_by(launcher: int) -> list[Path]:
    return [*Path("/dev/shm").glob(f"mixtral-{launcher}-*"), *Path("/tmp").glob(f"mixtral-{launcher}-*")]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    """A server of few slots, and of little shared memory where that can be had."""
    limits = dataclasses.replace(LIMITS, max_batch_size=SLOTS, max_queue_size=8)
    server = SupervisedServer(
        *(tmp_path_factory.mktemp("crowded"), ENGINE, SUPERVISION),
        limits=limits,
        drain_s=PATIENCE_S,
        before=small_shared_memory("20m"),
    )
    with server:
        yield server


def test_shared_memory_that_is_too_small_for_a_server_is_said_before_it_starts(tmp_path: Path) -> None:
    if (before := small_shared_memory("8m")) is None:
        pytest.skip(NO_MOUNT)
    server = SupervisedServer(tmp_path, ENGINE, SUPERVISION, before=before)
    server.start()
    assert server.process.wait(PATIENCE_S) == 1
    assert server.log.read_text() == (
        "error: /dev/shm has 8 MiB free, 16 MiB are needed; in a container raise it with --shm-size\n"
    )


def test_a_request_too_large_for_shared_memory_fails_alone(crowded: SupervisedServer) -> None:
    if small_shared_memory("8m") is None:
        pytest.skip(NO_MOUNT)
    streams = [crowded.stream(number, 100) for number in range(SLOTS - 1)]
    fault = Fault("request larger than /dev/shm")
    answer = crowded.server.ask(text_input="word " * 4_000_000, max_tokens=5)
    assert "shared memory" in str(answer.error)
    for stream in streams:
        stream.check_whole()
    crowded.open(5, 10).check_whole()
    fault.record([], "that request, with an error that says why")


def test_a_deadline_ends_a_request_that_still_waits(crowded: SupervisedServer) -> None:
    running = [crowded.stream(number, ENDLESS) for number in range(SLOTS)]
    late = crowded.open(9, 10, timeout_ms=300)
    late.finish()
    assert (late.finish_reason, late.token_ids) == ("timeout", [])
    assert not any(stream.ended for stream in running)
    for stream in running:
        stream.cancel()
    crowded.open(9, 10).check_whole()


def test_sigterm_under_load_finishes_what_runs_and_a_second_one_ends_it(crowded: SupervisedServer) -> None:
    short = [crowded.stream(number, 50) for number in range(SLOTS - 1)]
    endless = crowded.stream(SLOTS, ENDLESS)
    waiting = crowded.open(SLOTS + 1, 20)
    crowded.server.wait_for_stats(lambda stats: stats["queued"] == 1)
    fault = Fault("SIGTERM under load")
    crowded.process.send_signal(signal.SIGTERM)
    crowded.wait_until(lambda: not crowded.health("ready")["ok"])
    assert crowded.health("live")["ok"]
    refused = crowded.open(6, 10)
    assert "the server is shutting down" in str(refused.check_lost())
    for stream in [*short, waiting]:
        stream.check_whole()
    fault.record([refused], "nothing: running and waiting requests finish within drain_s")
    assert not endless.ended
    fault = Fault("second SIGTERM")
    crowded.process.send_signal(signal.SIGTERM)
    endless.check_lost()
    assert crowded.process.wait(PATIENCE_S) == 0
    fault.record([endless], "the running requests", ended=True)


def test_a_killed_launcher_takes_its_server_along_and_the_next_one_can_give_up(tmp_path: Path) -> None:
    """Whose restarts are used up ends with status 1. An orchestrator sees that, and that the health port is gone."""
    address = free_address()
    first = SupervisedServer(tmp_path / "first", ENGINE, SUPERVISION, address=address)
    with first:
        family = [first.triton(), *first.triton().children()]
        stream = first.stream(1, ENDLESS)
        fault = Fault("launcher killed")
        first.process.kill()
        assert isinstance(stream.check_lost(), ServerUnreachable)
        fault.record([stream], "the running requests", ended=True)
    first.wait_until(lambda: not any(running(process) for process in family))
    first.wait_until(lambda: not left_by(first.process.pid))
    second = SupervisedServer(tmp_path / "second", ENGINE, SUPERVISION, address=address)
    with second:
        second.open(1, 10).check_whole()
        stream = second.stream(1, ENDLESS)
        second.stub("postprocessing").kill()
        stream.check_lost()
        assert second.process.wait(PATIENCE_S) == 1
    assert not second.health("live")["ok"]
    assert "the process of postprocessing is dead; giving up after 0 restarts" in second.log.read_text()
    assert not left_by(second.process.pid)


def running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
