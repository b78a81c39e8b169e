"""Pictures of results: what they show, as numbers; and that the files say it with labels and units."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from bench_results import SYNTHETIC, point, record, result, rising, workers

from mixtral_client.bench.picture_data import (
    LEAST_ROWS,
    MOST_CURVES,
    MOST_ROWS,
    Run,
    arrival_lines,
    curves,
    has_line,
    latency_lines,
    limits,
    modes,
    throughput_lines,
    timeline,
)
from mixtral_client.bench.picture_text import caption
from mixtral_client.bench.pictures import draw, draw_together
from mixtral_client.bench.result import BenchResult, ClosedLoad, OpenLoad, Point
from mixtral_client.bench.style import log_if_wide, new_figure, plotting


def alone(points: list[Point]) -> list[Run]:
    return [Run("", result(points))]


def test_latency_has_a_line_for_median_and_p99_through_every_load() -> None:
    points = rising((4, 1, 2))
    lines = latency_lines(alone(points), "open", "ttft_s")
    assert [line.kind for line in lines] == ["p50", "p99"]
    assert [line.x for line in lines] == [[1, 2, 4], [1, 2, 4]]  # by rising load
    assert lines[1].y == [points[i].summary.ttft_s.p99 for i in (1, 2, 0)]


def test_every_run_and_workload_has_its_own_line() -> None:
    longer = [replace(each, workload=replace(SYNTHETIC, output_tokens="256")) for each in workers((1, 2))]
    runs = [Run("A", result(workers((1, 2)) + longer)), Run("B", result(workers((1, 2))))]
    lines = throughput_lines(runs, "closed", "output_tokens_per_s")
    assert [line.label for line in lines] == ["A, 512 in, 128 out", "A, 512 in, 256 out", "B, 512 in, 128 out"]
    assert len({line.group for line in lines}) == 3


def test_a_point_without_a_figure_is_left_out_and_a_partial_one_marked() -> None:
    nothing_completed = point(ClosedLoad(2), failed=24)
    cut = point(ClosedLoad(4), partial=True)
    (p50, _) = latency_lines(alone([point(ClosedLoad(1)), nothing_completed, cut]), "closed", "e2e_s")
    assert p50.x == [1, 4]
    assert p50.partial == [False, True]


def test_what_arrived_is_counted_and_not_the_rate_that_was_asked_for() -> None:
    every_second = [record(i, float(i), 0.1, 0.01, 4) for i in range(11)]
    asked_for_two = replace(point(OpenLoad(2.0, "poisson", 0)), requests=every_second, window=(0.0, 10.0))
    (line,) = arrival_lines(alone([asked_for_two]))
    assert (line.x, line.y) == ([2.0], [1.0])


def test_loads_of_both_kinds_are_apart() -> None:
    runs = alone([*workers((1, 2)), *rising((1,))])
    assert modes(runs) == ["closed", "open"]
    assert has_line(runs, "closed")
    assert not has_line(runs, "open")  # one rate makes no line


def test_limits_are_those_of_the_slo() -> None:
    assert limits(alone(rising()), "ttft_s") == [("p99", 0.5)]
    assert limits(alone(rising()), "e2e_s") == []


def test_a_distribution_holds_its_own_percentiles() -> None:
    ramp = [record(i, i, 0.1 * (i + 1), 0.01, 4) for i in range(10)]
    (curve,) = curves(alone([replace(point(OpenLoad(1, "constant", 0)), requests=ramp)]), "ttft_s")
    assert curve.marks[50] == pytest.approx(0.55)
    assert curve.x[0] == pytest.approx(0.1)
    assert curve.x[-1] == pytest.approx(1.0)
    assert curve.percentile[0] == 0
    assert curve.percentile[-1] == 100


def test_warm_up_and_failures_are_in_no_distribution() -> None:
    requests = [record(0, 0, 9, 1, 4, measured=False), record(1, 1, 9, 1, 4, failed=True), record(2, 2, 0.5, 0.1, 4)]
    (curve,) = curves(alone([replace(point(OpenLoad(1, "constant", 0)), requests=requests)]), "tpot_s")
    assert max(curve.x) == pytest.approx(0.1)


def test_of_many_loads_the_distributions_of_some_are_shown_first_and_last_included() -> None:
    found = curves(alone(workers(tuple(range(1, 13)))), "ttft_s")
    assert len(found) == MOST_CURVES
    assert found[0].label == "1 at once"
    assert found[-1].label == "12 at once"


def test_a_timeline_holds_schedule_first_token_end_and_responses() -> None:
    shown = timeline(point(ClosedLoad(1), requests=100, failed=1, gap=0.1))
    assert len(shown.rows) == MOST_ROWS
    assert shown.of == 98  # without two of warm-up
    row = shown.rows[0]
    assert row.first_s is not None
    assert row.scheduled_s < row.sent_s < row.first_s < row.end_s
    assert len(row.responses) == 16
    assert row.responses[0] == row.first_s


def test_a_timeline_of_short_requests_ends_before_their_responses_run_into_one_another() -> None:
    rows = timeline(point(ClosedLoad(1), requests=100, gap=0.005)).rows
    assert LEAST_ROWS <= len(rows) < MOST_ROWS
    assert rows[-1].end_s - rows[0].scheduled_s < 20 * (rows[0].end_s - rows[0].scheduled_s)
    assert len(timeline(point(ClosedLoad(1), requests=100, gap=0.0001, ttft=0.001)).rows) == LEAST_ROWS


def names(paths: list[Path]) -> set[str]:
    assert all(path.stat().st_size > 5000 for path in paths)
    return {path.name for path in paths}


def both(*stems: str) -> set[str]:
    return {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}


@pytest.mark.parametrize(
    ("measured", "stems"),
    [
        (rising((1, 2)), ("latency-rate", "throughput-rate", "distributions", "timeline")),
        (workers((1, 2)), ("latency-concurrency", "throughput-concurrency", "distributions", "timeline")),
        (workers((4,)), ("distributions", "timeline")),
        (
            [*workers((8,)), replace(point(ClosedLoad(8)), workload=replace(SYNTHETIC, input_tokens="2048"))],
            ("points", "distributions", "timeline"),
        ),
        ([], ()),
    ],
    ids=["rates", "concurrencies", "one point", "a grid of workloads", "nothing measured"],
)
def test_a_result_gets_the_pictures_that_it_has_something_for(
    measured: list[Point], stems: tuple[str, ...], tmp_path: Path
) -> None:
    assert names(draw(result(measured), tmp_path)) == both(*stems)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The SVGs of a partial run in which requests failed."""
    folder = tmp_path_factory.mktemp("pictures")
    cut = point(OpenLoad(8, "poisson", 0), gap=0.02, failed=3, partial=True)
    draw(result([*rising((1, 2, 4)), cut], partial=True, preset="fireworks"), folder)
    return {path.stem: path.read_text() for path in folder.glob("*.svg")}


def test_axes_have_labels_with_units(texts: dict[str, str]) -> None:
    for label in ("time to first token (TTFT), ms", "time per output token (TPOT), ms", "end to end, s"):
        assert label in texts["latency-rate"]
    assert "arrival rate, requests/s" in texts["latency-rate"]
    assert "output tokens/s" in texts["throughput-rate"]
    assert "seconds since the point began" in texts["timeline"]
    assert "percentile of requests" in texts["distributions"]


def test_legends_name_every_line(texts: dict[str, str]) -> None:
    assert all(f">{label}<" in texts["latency-rate"] for label in ("p50", "p99", "limit on p99", "partial"))
    assert all(label in texts["throughput-rate"] for label in ("completed", "goodput", "arrived"))
    assert all(label in texts["timeline"] for label in ("first token", "response", "failed", "steady state"))
    assert all(f"{rate} requests/s" in texts["distributions"] for rate in (1, 2, 4, 8))


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_logarithmic_axis_of_two_decades_is_labelled_between_them_without_overlap(axis: Literal["x", "y"]) -> None:
    figure, (panel,) = new_figure("")
    assert log_if_wide(panel, axis, [3.0, 150.0])
    panel.set(**{f"{axis}lim": (3.0, 150.0)})
    found = panel.xaxis if axis == "x" else panel.yaxis
    figure.canvas.draw()
    both_kinds = found.get_ticklabels() + found.get_ticklabels(minor=True)
    assert {"5", "10", "20", "50", "100"} <= {label.get_text() for label in both_kinds}
    assert not any("\u00d7" in label.get_text() or "mathdefault" in label.get_text() for label in both_kinds)
    plotting().close(figure)


def test_captions_say_where_the_figures_come_from(texts: dict[str, str]) -> None:
    for text in texts.values():
        assert "Some Processor 3000, 2 cores" in text
        assert "pytorch int8 engine, 4 layers of 256, batch up to 16" in text
        assert "mixtral-triton 0.1.0, torch 2.13.0, tritonclient 2.73.0; 2026-11-21" in text
        assert "(partial run)" in text
        assert "Failed, and not in the latencies: 8 requests/s: 3 UNAVAILABLE" in text


def test_a_caption_does_not_take_the_load_generator_s_machine_for_the_server_s() -> None:
    here = result(workers((1,)))
    there = replace(here, server=replace(here.server, url="gpu-host:8001"))
    on_gpu = replace(there, hardware=replace(here.hardware, gpu="sm90"))
    assert "; load generator on" not in caption([Run("", here)])
    assert "server on another machine; load generator on Some Processor 3000, 2 cores" in caption([Run("", there)])
    assert "GPU sm90; load generator on Some Processor 3000, 2 cores" in caption([Run("", on_gpu)])


def test_the_same_result_gives_the_same_files(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in draw(result(workers((2,))), tmp_path / "a")}
    second = {path.name: path.read_bytes() for path in draw(result(workers((2,))), tmp_path / "b")}
    assert first == second


def test_results_are_drawn_over_one_another(tmp_path: Path) -> None:
    def run(name: str, factor: float) -> Run:
        data: BenchResult = result(workers((1, 2), factor=factor))
        return Run(name, data)

    paths = draw_together([run("old", 1.0), run("new", 0.5)], tmp_path)
    assert names(paths) == both("latency-concurrency", "throughput-concurrency", "distributions")
    text = (tmp_path / "latency-concurrency.svg").read_text()
    assert all(label in text for label in ("old, p50", "new, p99", "old: Some Processor", "new: Some Processor"))


def test_without_matplotlib_the_extra_is_named_and_everything_else_works() -> None:
    """In an interpreter of its own, in which importing matplotlib fails."""
    program = """
import sys
sys.modules["matplotlib"] = None
import mixtral_client.bench.pictures
from mixtral_client.bench.style import PicturesUnavailable, plotting
try:
    plotting()
except PicturesUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'mixtral-triton[bench]'" in done.stdout
