"""The load of `streaming.py` on a real server: each token's arrival is noted, and a failure is no measurement."""

from collections.abc import Iterator

import pytest
from make_engine import MODEL, PLUGIN_FOLDER
from streaming_load import Prompt, ensemble_request, run_streams
from streaming_measure import Prompts, first_token_ms, measure
from streaming_paths import OURS, Running, StreamingPath, serve

from mixtral_runtime.injection import PLUGIN_PATH

STEP_S = 0.005
PATH = StreamingPath("ensemble", OURS, ensemble_request)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLUGIN_PATH, str(PLUGIN_FOLDER))  # `serve` sets it too, and here it ends with the server
        with serve(OURS, STEP_S, tmp_path_factory.mktemp("server")) as server:
            yield server


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(MODEL, seed=1)


def test_every_token_of_every_stream_is_counted_at_its_time(running: Running, prompts: Prompts) -> None:
    asked = [prompts.make(16) for _ in range(6)]
    arrivals = run_streams(running.port, [ensemble_request(prompt, 20) for prompt in asked])
    for stream in arrivals:
        assert sum(stream.tokens) == 20
        assert [stream.sent_ns, *stream.times_ns] == sorted([stream.sent_ns, *stream.times_ns])


def test_a_measurement_adds_up(running: Running, prompts: Prompts) -> None:
    point = measure(PATH, running, [prompts.make(16) for _ in range(2)], 40, STEP_S)
    assert 0 < point.added_p50_ms <= point.added_p99_ms
    assert point.delivered_tokens_per_s == pytest.approx(point.responses_per_s * point.tokens_per_response)
    assert first_token_ms(PATH, running, prompts.make(16)) > 0


def test_a_refused_request_is_an_error(running: Running) -> None:
    with pytest.raises(RuntimeError, match="max_tokens is 0, it must be at least 1"):
        run_streams(running.port, [ensemble_request(Prompt("Once", [1]), 0)])


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed to connect"):
        run_streams(1, [ensemble_request(Prompt("Once", [1]), 1)])
