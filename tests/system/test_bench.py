"""`mixtral bench` against the real server and the synthetic engine: counts, a pause, Ctrl-C, a server that dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_server import synthetic_server
from system_server import Server, idle

from mixtral_client.bench.result import BenchResult, Point, read_result
from mixtral_client.bench.statistics import ttft_s
from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.process import ServerProcess

MIXTRAL = Path(sys.executable).parent / "mixtral"
WAIT_S = 60.0  # for a busy machine
PAUSE_S = 1.0
STEP_S = 0.005
SYNTHETIC = {"step_s": STEP_S, "pauses": [{"for_s": PAUSE_S, "at_s": 0.0, "every_s": 3.0}]}
LENGTHS = ("--input-tokens", "50", "--output-tokens", "20")
RATE = 25


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("synthetic")
    with (folder / "log").open("w") as log, synthetic_server(folder, SYNTHETIC, log=log) as process:
        yield process


@pytest.fixture(scope="module")
def pausing(processes: ServerProcess) -> Server:
    return Server(processes.address)


def bench(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(MIXTRAL), "bench", *LENGTHS, *arguments, "--url", server.grpc_url]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)


def start(server: Server, *arguments: str) -> subprocess.Popen[str]:
    """A run that has begun: some of its requests have ended."""
    command = [str(MIXTRAL), "bench", *LENGTHS, *arguments, "--url", server.grpc_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " done" in line and " 0 done" not in line:
            return process
    raise AssertionError(f"the run ended by itself with {process.wait()}")


def read(path: Path) -> tuple[BenchResult, Point]:
    result = read_result(path)
    (point,) = result.points
    return result, point


def test_every_token_is_counted_once(pausing: Server, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    before = pausing.info()["stats"]
    done = bench(pausing, "--concurrency", "8", "--requests", "40", "--output", str(output), "--json")
    assert done.returncode == 0, done.stderr
    result, point = read(output)
    after = pausing.info()["stats"]
    assert len(point.requests) == 48, "one more for each worker as warm-up"
    for record in point.requests:
        assert (record.input_tokens, record.output_tokens, record.finish_reason) == (50, 20, "length")
        assert sum(tokens for _, tokens in record.responses) == 20
    assert after["output_tokens"] - before["output_tokens"] == 48 * 20
    assert after["prompt_tokens"] - before["prompt_tokens"] == 48 * 50
    assert (point.summary.completed, point.summary.errors, result.partial) == (40, {}, False)
    assert json.loads(done.stdout)["points"][0]["summary"]["completed"] == 40
    assert result.server.manifest["precision"] == "synthetic"


def test_an_engine_that_pauses_shows_in_the_percentiles_of_an_open_loop(pausing: Server, tmp_path: Path) -> None:
    """A third of the arrivals fall into the pause and wait for its end, however many wait already."""
    output = tmp_path / "result.json"
    load = ("--rate", str(RATE), "--arrivals", "constant", "--duration", "3", "--warmup", "0")
    assert bench(pausing, *load, "--output", str(output)).returncode == 0
    _, point = read(output)
    assert [record.scheduled_s for record in point.requests] == pytest.approx([i / RATE for i in range(3 * RATE)])
    waits = [wait for record in point.requests if (wait := ttft_s(record, point.load)) is not None]
    assert len(waits) == 3 * RATE
    half = [wait for wait in waits if wait > PAUSE_S / 2]
    assert len(half) >= RATE * PAUSE_S / 2 - 2, "half of the pause's arrivals waited for more than half of it"
    assert point.summary.ttft_s.p95 is not None
    assert point.summary.ttft_s.p95 > PAUSE_S / 2


def test_interrupting_keeps_what_was_measured_and_frees_the_server(pausing: Server, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = start(pausing, "--concurrency", "4", "--duration", "60", "--output", str(output))
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "(partial)" in stdout
    result, point = read(output)
    assert (result.partial, point.partial) == (True, True)
    assert point.summary.completed > 0
    assert point.summary.errors == {}, "what the interrupt cut off is not the server's fault"
    cut = [record for record in point.requests if record.error is not None]
    assert {record.error.kind for record in cut if record.error} == {"INTERRUPTED"}
    assert 1 <= len(cut) <= 4
    assert not any(record.measured for record in cut)
    pausing.wait_for_stats(idle)


def test_a_server_that_dies_gives_a_report_with_its_errors(
    processes: ServerProcess, pausing: Server, tmp_path: Path
) -> None:
    """The last test of this file: it kills the server that the others use."""
    output = tmp_path / "result.json"
    running = start(pausing, "--concurrency", "4", "--duration", "60", "--output", str(output))
    assert processes.process is not None
    os.killpg(processes.process.pid, signal.SIGKILL)
    stdout, stderr = running.communicate(timeout=WAIT_S)
    assert running.returncode == 1
    assert "error: the run ended early: lost the connection to 127.0.0.1" in stderr
    result, point = read(output)
    assert (result.partial, point.partial) == (True, True)
    assert point.summary.completed > 0
    assert set(point.summary.errors) == {"UNREACHABLE"}
    assert 1 <= sum(point.summary.errors.values()) <= 4
    assert "(partial)" in stdout
