"""Prometheus reads our metrics, rules and dashboard: its own checks, and a real one that scrapes a busy server."""

import json
import math
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dashboard import Query, queries
from external_tools import ROOT, find_tool, run_tool
from system_server import Server, free_address

DEPLOY = ROOT / "deploy"
TRAFFIC_S = 10.0
# No GPU here, and the PyTorch engine of the demo model gives these no traffic.
EMPTY = ("nv_gpu_", "mixtral_prefix_blocks_")


def test_prometheus_accepts_configuration_and_rules() -> None:
    run_tool("promtool", "check", "config", DEPLOY / "prometheus.yml")
    run_tool("promtool", "check", "rules", DEPLOY / "prometheus-rules.yml")


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    run_tool("promtool", "test", "rules", Path(__file__).with_name("prometheus-rules-test.yml"))


def test_names_types_and_units_please_promtool(server: Server) -> None:
    """Triton's own metrics break Prometheus' rules of naming; ours must not."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.address.metrics_port}/metrics") as answer:
        lines = answer.read().decode().splitlines(keepends=True)
    ours = "".join(line for line in lines if re.match(r"(# (HELP|TYPE) )?mixtral_", line))
    assert ours.count("# TYPE") > 20
    assert run_tool("promtool", "check", "metrics", stdin=ours) == ""


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        query = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(query, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]


def make_traffic(server: Server, until: threading.Event) -> None:
    """All that the panels tell apart: streams, single answers, stop words, cancels, refusals of both models."""
    story: dict[str, Any] = {"text_input": "Once upon a time"}
    while not until.is_set():
        server.ask(**story, max_tokens=40, stream=True, ignore_eos=True)
        server.ask(**story, max_tokens=40, stop_words=["e"])
        server.ask(max_tokens=5)
        server.ask(**story, max_tokens=0)
        stream = server.open(**story, max_tokens=1500, ignore_eos=True, stream=True)
        stream.next()
        stream.cancel()


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with our configuration, but for the target's port and the pace, after some seconds of traffic."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = (DEPLOY / "prometheus.yml").read_text()
    for ours, here in {
        "127.0.0.1:8002": f"127.0.0.1:{server.address.metrics_port}",
        "scrape_interval: 5s": "scrape_interval: 500ms",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
        "prometheus-rules.yml": str(DEPLOY / "prometheus-rules.yml"),
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    (folder / "prometheus.yml").write_text(text)
    listen = f"127.0.0.1:{free_address().http_port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                find_tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={listen}",
            ],
            stdout=log,
            stderr=log,
        )
    found, enough = Prometheus(f"http://{listen}"), threading.Event()
    try:
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(make_traffic, server, enough) for _ in range(2)]
            time.sleep(TRAFFIC_S)
            enough.set()
            for one in running:
                one.result()
        yield found
    except BaseException:
        print((folder / "log").read_text()[-3000:])
        raise
    finally:
        process.terminate()
        process.wait(20)


def test_the_server_is_scraped(prometheus: Prometheus) -> None:
    [target] = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.parametrize("query", queries(), ids=str)
def test_every_query_of_the_dashboard_shows_the_traffic(prometheus: Prometheus, query: Query) -> None:
    result = prometheus.get("query", query=query.filled(rate_interval="10s"))["result"]
    numbers = [float(series["value"][1]) for series in result]
    if not any(name in query.expression for name in EMPTY):
        assert numbers
        assert any(math.isfinite(number) for number in numbers)


def test_the_traffic_is_what_the_queries_say(prometheus: Prometheus) -> None:
    """A query can be valid and yet ask for the wrong thing."""

    def value(panel: str, legend: str) -> float:
        [query] = [query for query in queries() if (query.panel, query.legend) == (panel, legend)]
        [series] = prometheus.get("query", query=query.filled(rate_interval="10s"))["result"]
        return float(series["value"][1])

    assert 0 < value("Time to first token", "p50") <= value("Time to first token", "p99") < 10
    assert 0 < value("Time per output token", "p50") < 1
    assert value("Tokens per second", "output") > value("Tokens per second", "prompt") > 0
    assert value("Errors", "errors") == 0
    assert 0 < value("Batch size", "tokens per step") < 4  # two clients; rates of a few seconds are extrapolated
    assert value("KV cache", "free") > value("KV cache", "used") >= 0


def test_every_rule_can_be_evaluated(prometheus: Prometheus) -> None:
    [group] = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert {rule["state"] for rule in group["rules"]} == {"inactive"}
