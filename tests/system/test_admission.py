"""Too much waiting is refused at once, and deadlines hold in the queue too: on the real server with one slot."""

from collections.abc import Iterator
from typing import Any

import pytest
from scrape import Scrape
from synthetic_server import synthetic_server
from synthetic_tokens import expected_tokens
from system_server import Server, Stream, idle

from mixtral_runtime.engine import EngineLimits
from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.process import ServerProcess

LIMITS = EngineLimits(max_batch_size=1, max_input_len=64, max_seq_len=4096, max_num_tokens=256, max_queue_size=8)
PROMPT = list(range(300, 340))  # 40 tokens, so that two may wait and no third
ENDLESS: dict[str, Any] = {"input_ids": PROMPT, "max_tokens": 4000, "stream": True, "return_output_ids": True}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("admission")
    config = folder / "serve.toml"
    config.write_text("[engine]\nmax_queued_tokens = 100\n")
    with (
        (folder / "log").open("w") as log,
        synthetic_server(folder / "engine", {"step_s": 0.005}, LIMITS, config=config, log=log) as process,
    ):
        yield process


@pytest.fixture(scope="module")
def server(process: ServerProcess) -> Server:
    return Server(process.address)


@pytest.fixture
def running(server: Server) -> Iterator[Stream]:
    """A request that holds the only slot."""
    stream = server.open(**ENDLESS)
    assert stream.next()[1] is None
    yield stream
    stream.cancel()
    server.wait_for_stats(idle)


def rejected(server: Server) -> float:
    metrics = Scrape.read(f"http://127.0.0.1:{server.address.metrics_port}/metrics")
    return metrics.value("mixtral_requests_rejected_total", code="UNAVAILABLE")


def test_what_waits_is_bounded_in_tokens(server: Server, process: ServerProcess, running: Stream) -> None:
    before = rejected(server)
    waiting = [server.open(**ENDLESS) for _ in range(2)]
    server.wait_for_stats(lambda stats: stats["queued"] == 2)
    refused = server.ask(**ENDLESS)
    assert refused.responses == []
    assert "UNAVAILABLE: the queue is full: 80 prompt tokens wait and the prompt has 40, the limit is 100" in str(
        refused.error
    )
    canary = server.open(request_id=process.canary_id, input_ids=list(range(300, 330)), max_tokens=1)
    server.wait_for_stats(lambda stats: stats["queued"] == 3)
    running.cancel()
    answer = canary.finish()
    assert answer.error is None, "the supervisor's own request goes before all others"
    for stream in waiting:
        stream.cancel()
    server.wait_for_stats(lambda stats: idle(stats) and rejected(server) == before + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_a_request_that_waits(server: Server, running: Stream, stream: bool) -> None:
    answer = server.ask(**ENDLESS | {"stream": stream}, timeout_ms=100)
    assert answer.error is None
    assert answer.values("finish_reason") == [b"timeout"]
    assert answer.values("output_ids") == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_a_request_that_runs(server: Server, stream: bool) -> None:
    answer = server.ask(**ENDLESS | {"stream": stream}, timeout_ms=300)
    said = answer.values("output_ids")
    assert answer.values("finish_reason") == [b"timeout"]
    assert 0 < len(said) < 4000
    assert said == expected_tokens(PROMPT, len(said))
