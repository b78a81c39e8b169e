"""When a server is restarted and when it is left alone, how often, and what its health says."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import pytest

from mixtral_runtime.errors import Internal, InvalidArgument
from mixtral_runtime.settings import read_settings
from mixtral_serving.server.canary import Canary
from mixtral_serving.server.health import Health, HealthEndpoint
from mixtral_serving.server.supervision import Observation, RestartBudget, SupervisionSettings, fault

WAIT_S = 20.0
SETTINGS = SupervisionSettings(canary_timeout_s=30, max_restarts=3, restart_window_s=100, backoff_s=1)
IDLE = Observation(None, (), 0.0, 0, 1000.0, 0, 1000.0)


def test_an_idle_server_is_left_alone() -> None:
    assert fault(IDLE, SETTINGS) is None


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (replace(IDLE, exit_code=-11), "the server ended by itself, exit code -11"),
        (replace(IDLE, dead_stubs=("tensorrt_llm", "unary")), "the process of tensorrt_llm, unary is dead"),
        (replace(IDLE, canary_failures=2), "2 canary requests in a row failed in the engine"),
        (replace(IDLE, canary_waits_s=31), "no answer for 30 s and the engine stands still"),
        (replace(IDLE, canary_waits_s=31, unhandled=3, engine_idle_s=0), "the detokenizer stands still"),
    ],
)
def test_a_broken_server_is_restarted(seen: Observation, reason: str) -> None:
    assert reason in (fault(seen, SETTINGS) or "")


@pytest.mark.parametrize(
    "seen",
    [
        replace(IDLE, canary_waits_s=29),
        replace(IDLE, canary_failures=1),
        # A full queue: the canary waits behind others, the engine makes steps, the detokenizer answers.
        replace(IDLE, canary_waits_s=500, engine_idle_s=0.1, unhandled=16, detokenizer_idle_s=0.1),
        # Long prefills, nothing to detokenise for minutes.
        replace(IDLE, canary_waits_s=500, engine_idle_s=5, unhandled=0, detokenizer_idle_s=300),
        # A pause of ten seconds under load.
        replace(IDLE, canary_waits_s=10, engine_idle_s=10, unhandled=16, detokenizer_idle_s=10),
    ],
)
def test_a_busy_server_is_left_alone(seen: Observation) -> None:
    assert fault(seen, SETTINGS) is None


def test_restarts_are_spaced_and_limited() -> None:
    budget = RestartBudget(SETTINGS)
    assert [budget.next_pause_s(now) for now in (0.0, 1.0, 2.0, 3.0)] == [1, 2, 4, None]
    assert budget.next_pause_s(100.5) == 4  # the first is out of the window by now
    assert RestartBudget(replace(SETTINGS, max_restarts=0)).next_pause_s(0.0) is None


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(InvalidArgument, match=r"supervision\.canary_timeout_s is 0, it must be above 0"):
        read_settings(SupervisionSettings, {"canary_timeout_s": 0}, "supervision")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_canary_without_an_answer_waits_from_its_first_question_on() -> None:
    answers: list[Exception | None] = [None, TimeoutError(), OSError("refused")]
    asked = threading.Semaphore(0)
    go_on = threading.Event()

    def ask() -> None:
        asked.release()
        if answers:
            if (answer := answers.pop(0)) is not None:
                raise answer
            return
        go_on.wait(WAIT_S)
        raise Internal("INTERNAL: the engine has stopped")

    canary = Canary(ask, interval_s=0.01)
    canary.start()
    for _ in range(4):
        assert asked.acquire(timeout=WAIT_S)
    assert canary.waits_s() > 0
    assert canary.failures == 0
    go_on.set()
    wait_until(lambda: canary.failures >= 2)
    assert canary.waits_s() < WAIT_S
    canary.stop()


def get(port: int, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}") if error.code == 503 else {}


def test_the_health_endpoint_says_what_holds_and_why_not() -> None:
    health = Health()
    with HealthEndpoint("127.0.0.1", 0, health) as endpoint:
        assert get(endpoint.port, "/live") == (200, {"ok": True, "reasons": ["the server is starting"], "restarts": 0})
        assert get(endpoint.port, "/startup")[0] == 503
        assert get(endpoint.port, "/ready")[0] == 503
        health.started, health.reasons = True, []
        assert [get(endpoint.port, path)[0] for path in ("/live", "/startup", "/ready?x=1")] == [200, 200, 200]
        health.reasons, health.restarts = ["the process of tensorrt_llm is dead"], 1
        ready = {"ok": False, "reasons": ["the process of tensorrt_llm is dead"], "restarts": 1}
        assert get(endpoint.port, "/ready") == (503, ready)
        assert get(endpoint.port, "/startup")[0] == 200
        assert get(endpoint.port, "/else")[0] == 404
