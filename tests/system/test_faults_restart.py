"""Faults that cost the server: it is restarted, whoever was connected gets an error at once, and nobody hangs.

Each fault hits a freshly started server, since the one before it ended in a restart.
"""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from fault_table import Fault
from supervised_server import SupervisedServer

from mixtral_serving.server.installation import unsupported_platform

STEP_S = 0.02
ENDLESS = 10_000  # tokens
STREAMS = 8
# The window is so short that no restart counts for the pause before the next.
QUICK = {"canary_interval_s": 0.3, "canary_timeout_s": 3.0, "restart_window_s": 1.0, "backoff_s": 0.1}
SOUND: dict[str, Any] = {"step_s": STEP_S}
MODELS = {"preprocessing": "tokenizer", "tensorrt_llm": "engine", "postprocessing": "detokenizer"}


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    with SupervisedServer(tmp_path_factory.mktemp("restart"), SOUND, QUICK) as server:
        yield server


def restarts(supervised: SupervisedServer) -> int:
    return int(supervised.health("ready")["restarts"])


def kill_idle(supervised: SupervisedServer, model: str, engine: dict[str, Any]) -> None:
    """The process of a model dies while nobody asks for anything. engine: the settings of the next one."""
    before = restarts(supervised)
    supervised.next_engine(engine)
    stub = supervised.stub(model)
    fault = Fault(f"{MODELS[model]} process killed, idle")
    stub.kill()
    supervised.wait_until_back(before + 1)
    supervised.next_engine(SOUND)
    fault.record([], "nothing", back=True)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_process_of_a_model_is_killed_under_load(supervised: SupervisedServer, model: str) -> None:
    """All models' processes fall with it: what they hold of running requests does not fit the others any more."""
    before = restarts(supervised)
    streams = [supervised.stream(number, ENDLESS) for number in range(STREAMS)]
    stub = supervised.stub(model)
    fault = Fault(f"{MODELS[model]} process killed, {STREAMS} streams running")
    stub.kill()
    for stream in streams:
        stream.check_lost()
    supervised.wait_until_back(before + 1)
    fault.record(streams, "the running requests", back=True)
    assert f"the process of {model} is dead" in supervised.log.read_text()


def test_the_engine_pauses(supervised: SupervisedServer) -> None:
    """A pause shorter than the canary's time limit is not a fault: nobody loses anything."""
    pause_s = 2.0
    kill_idle(supervised, "postprocessing", SOUND | {"pauses": [{"at_step": 30, "for_s": pause_s}]})
    before = restarts(supervised)
    fault = Fault(f"engine pauses {pause_s:g} s (two thirds of canary_timeout_s)")
    streams = [supervised.open(number, 60) for number in range(STREAMS)]
    for stream in streams:
        stream.check_whole()
    fault.record([], "nothing")
    assert restarts(supervised) == before
    assert supervised.health("ready")["ok"]


def test_a_step_of_the_engine_fails_once_and_then_always(supervised: SupervisedServer) -> None:
    once, always = {"what": "step", "at": 60}, {"what": "step", "at": 150, "always": True}
    kill_idle(supervised, "tensorrt_llm", SOUND | {"failures": [once, always]})
    before = restarts(supervised)
    fault = Fault("engine step raises once")
    hit = [supervised.open(number, ENDLESS) for number in range(STREAMS)]
    for stream in hit:
        assert "the engine failed to compute this request" in str(stream.check_lost())
    later = [supervised.open(number, 10) for number in range(STREAMS)]
    for stream in later:
        stream.check_whole()
    fault.record(hit, "the requests in that step")
    assert restarts(supervised) == before

    streams = [supervised.open(number, ENDLESS) for number in range(STREAMS)]
    for stream in streams:
        assert "the engine failed to compute this request" in str(stream.check_lost())
    fault = Fault("engine step raises from now on")
    supervised.wait_until_back(before + 1)
    fault.record(streams, "every request until the restart", back=True)
    assert "2 canary requests in a row failed in the engine" in supervised.log.read_text()


def test_the_server_stands_still(supervised: SupervisedServer) -> None:
    before = restarts(supervised)
    streams = [supervised.stream(number, ENDLESS) for number in range(STREAMS)]
    server = supervised.triton()
    fault = Fault("server process stopped (SIGSTOP)")
    server.send_signal(signal.SIGSTOP)
    supervised.wait_until(lambda: not supervised.health("ready")["ok"])
    for stream in streams:
        stream.check_lost()
    supervised.wait_until_back(before + 1)
    fault.record(streams, "the running requests", back=True)


def test_the_detokenizer_stands_still(supervised: SupervisedServer) -> None:
    before = restarts(supervised)
    streams = [supervised.stream(number, ENDLESS) for number in range(STREAMS)]
    stub = supervised.stub("postprocessing")
    fault = Fault("detokenizer process stopped (SIGSTOP)")
    stub.send_signal(signal.SIGSTOP)
    for stream in streams:
        stream.check_lost()
    supervised.wait_until_back(before + 1)
    fault.record(streams, "the running requests", back=True)
