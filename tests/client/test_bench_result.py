"""The result file: what is written comes back, and what does not fit is refused with its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_results import point, result, rising

from mixtral_client.bench.result import (
    BenchResult,
    ClosedLoad,
    OpenLoad,
    ResultError,
    Search,
    Skipped,
    read_result,
    write_result,
)
from mixtral_client.bench.statistics import summarise


@pytest.fixture
def full() -> BenchResult:
    """A result with everything in it that may be left out."""
    closed = point(ClosedLoad(4), failed=2)
    priced = summarise(closed.requests, closed.load, closed.window, gpus=2, price=(2.5, 3.0), good_requests=3)
    bursty = point(OpenLoad(2.0, "bursty", 1, burstiness=0.25))
    whole = result([replace(closed, summary=priced), bursty, *rising((1, 8))], partial=True, preset="friendli")
    return replace(whole, skipped=[Skipped("5000/500", "too long")], search=Search(0.5, 8.0, 0.1, None))


def test_what_is_written_is_read_back(full: BenchResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(full, path)
    assert read_result(path) == full
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"], "nothing half-written is left"


def test_the_file_has_the_names_of_the_documentation(full: BenchResult, tmp_path: Path) -> None:
    write_result(full, tmp_path / "result.json")
    value = json.loads((tmp_path / "result.json").read_text())
    assert value["format_version"] == 1
    assert value["points"][0]["load"] == {"concurrency": 4, "mode": "closed"}
    assert value["points"][1]["load"] == {
        "rate": 2.0, "arrivals": "bursty", "seed": 1, "burstiness": 0.25, "mode": "open",
    }  # fmt: skip
    assert set(value["points"][0]["requests"][0]) == {
        "index", "scheduled_s", "sent_s", "first_s", "end_s", "responses", "input_tokens", "output_tokens",
        "finish_reason", "error", "measured",
    }  # fmt: skip
    assert set(value["points"][0]["summary"]["ttft_s"]) == {"mean", "p50", "p90", "p95", "p99", "max", "count"}


def set_at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(whole: Any) -> None:
        for key in path[:-1]:
            whole = whole[key]
        whole[path[-1]] = value

    return change


def remove(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(whole: Any) -> None:
        for key in path[:-1]:
            whole = whole[key]
        del whole[path[-1]]

    return change


REQUEST = ("points", 0, "requests", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("format_version", value=2), "has format_version 2, this program reads 1"),
        (remove("format_version"), "has format_version None"),
        (set_at("extra", value=1), "result has the unknown key 'extra'"),
        (remove("started_at"), "result has no 'started_at'"),
        (remove(*REQUEST, "sent_s"), r"result.points\[0\].requests\[0\] has no 'sent_s'"),
        (set_at(*REQUEST, "index", value="0"), r"requests\[0\].index is '0', it must be an integer"),
        (set_at(*REQUEST, "index", value=True), r"requests\[0\].index is True, it must be an integer"),
        (set_at(*REQUEST, "end_s", value=float("nan")), r"requests\[0\].end_s is nan, it must be a finite number"),
        (set_at(*REQUEST, "responses", value=[[1.0]]), r"responses\[0\] has 1 entries, it must have 2"),
        (set_at(*REQUEST, "error", value="full"), r"requests\[0\].error is 'full', it must be an object"),
        (set_at("points", 0, "load", "mode", value="ajar"), r"points\[0\].load"),
        (set_at("points", 1, "load", "arrivals", value="random"), r"load.arrivals is 'random', it must be one of"),
        (set_at("points", value={}), "result.points is {}, it must be a list"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    full: BenchResult, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "result.json"
    write_result(full, path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(ResultError, match=message):
        read_result(path)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        read_result(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ResultError, match="is not JSON"):
        read_result(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ResultError, match="format_version None"):
        read_result(tmp_path / "list.json")
