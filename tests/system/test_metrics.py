"""/metrics of the real server: what the requests did, no more and no less. The page docs/metrics.md lists it all."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scrape import Scrape
from system_server import Server, idle

STORY = "Once upon a time"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ENDLESS: dict[str, Any] = {"text_input": STORY, "max_tokens": 1500, "ignore_eos": True, "stream": True}


class Change:
    """What the counters and histograms gained since the start of the test."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.before = self.now = self.scrape()

    def scrape(self) -> Scrape:
        return Scrape.read(f"http://127.0.0.1:{self._server.address.metrics_port}/metrics")

    def of(self, name: str, **labels: str) -> float:
        return self.now.value(f"mixtral_{name}", **labels) - self.before.value(f"mixtral_{name}", **labels)

    def wait_for(self, reached: Callable[["Change"], bool]) -> None:
        """The backends publish a few times a second."""
        deadline = time.monotonic() + 20
        while True:
            self.now = self.scrape()
            if reached(self):
                return
            assert time.monotonic() < deadline, "not reached in 20 s"
            time.sleep(0.05)

    def wait_for_finished(self, count: int) -> None:
        self.wait_for(lambda change: change.of("request_duration_seconds_count") >= count)


@pytest.fixture
def change(server: Server) -> Change:
    server.wait_for_stats(idle)
    time.sleep(0.6)  # more than two publications: what earlier tests did is in
    return Change(server)


def test_requests_of_each_kind_are_counted_once(server: Server, change: Change) -> None:
    asked: dict[str, Any] = {"text_input": STORY, "return_num_input_tokens": True, "return_num_output_tokens": True}
    answers = [server.ask(**asked, max_tokens=20, ignore_eos=True, stream=True) for _ in range(3)]
    answers += [server.ask(**asked, max_tokens=30, ignore_eos=True)]
    change.wait_for_finished(4)
    change.wait_for(lambda change: change.of("engine_steps_total") >= 90)  # one after the other, a token a step
    prompt = answers[0].values("num_input_tokens")[0]
    output = sum(sum(answer.values("num_output_tokens")) for answer in answers)
    assert output == 3 * 20 + 30
    assert change.of("requests_accepted_total") == change.of("requests_finished_total") == 4
    assert change.of("requests_finished_total", reason="length") == 4
    assert change.of("prompt_tokens_total") == change.of("request_prompt_tokens_sum") == 4 * prompt
    assert change.of("output_tokens_total") == change.of("request_output_tokens_sum") == output
    assert change.of("time_to_first_token_seconds_count") == 3  # without streaming there is none
    assert change.of("request_queue_seconds_count") == 4
    assert change.of("time_to_first_token_seconds_sum") < change.of("request_duration_seconds_sum")


def test_stop_words_cancels_and_deadlines_are_told_apart(server: Server, change: Change) -> None:
    free = server.ask(**(ENDLESS | {"max_tokens": 60})).text
    server.ask(**ENDLESS, stop_words=[free[len(free) // 2 :][:4]])
    server.ask(**ENDLESS, timeout_ms=200)
    cancelled = server.open(**ENDLESS)
    cancelled.next()
    cancelled.cancel()
    change.wait_for_finished(4)
    for reason, count in {"length": 1, "stop": 1, "timeout": 1, "cancelled": 1, "error": 0}.items():
        assert change.of("requests_finished_total", reason=reason) == count, reason


def test_rejections_are_counted_where_they_happen(server: Server, change: Change) -> None:
    server.ask(max_tokens=3)  # no prompt
    server.ask(text_input=STORY, max_tokens=0)
    server.ask(text_input=STORY, max_tokens=10**6)
    change.wait_for(lambda change: change.of("requests_rejected_total") >= 3)
    assert change.of("requests_rejected_total", model="preprocessing", code="INVALID_ARGUMENT") == 1
    assert change.of("requests_rejected_total", model="tensorrt_llm", code="INVALID_ARGUMENT") == 2
    assert change.of("requests_accepted_total") == 0


def test_a_stop_request_gives_a_reason_that_exists(server: Server, change: Change) -> None:
    refused = server.ask(
        model="tensorrt_llm", stop=True, stop_reason="boredom", input_ids=[1], input_lengths=1, request_output_len=1
    )
    assert refused.error is not None
    assert "INVALID_ARGUMENT: stop_reason is 'boredom', it must be one of stop, length, cancelled" in refused.error
    change.wait_for(lambda change: change.of("requests_rejected_total", code="INVALID_ARGUMENT") == 1)


def test_gauges_follow_the_engine(server: Server, change: Change) -> None:
    streams = [server.open(**ENDLESS) for _ in range(3)]
    change.wait_for(lambda change: change.now.value("mixtral_requests_running") == 3)
    used, free = (change.now.value(f"mixtral_kv_cache_blocks_{state}") for state in ("used", "free"))
    assert used > 0
    assert used + free == change.now.value("mixtral_kv_cache_blocks_limit")
    assert change.now.value("mixtral_streams_live") == 3
    for stream in streams:
        stream.cancel()
    change.wait_for(lambda change: change.now.value("mixtral_requests_running") == 0)
    change.wait_for(lambda change: change.now.value("mixtral_streams_live") == 0)
    change.wait_for(lambda change: change.now.value("mixtral_kv_cache_blocks_used") == 0)


def test_the_page_lists_exactly_what_the_server_has(change: Change) -> None:
    """Name, type and labels; each row is `| `name` | type | label | …`."""
    rows = re.findall(r"^\| `(mixtral_\w+)` \| (\w+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(listed) == len(rows), "a metric is listed twice"
    served = {
        name: (kind, change.now.labels(name) - {"model", "version"})
        for name, kind in change.now.families("mixtral_").items()
    }
    assert listed == served
