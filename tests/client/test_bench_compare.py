"""`mixtral bench compare`: ratios of points with the same load, and nothing compared that is not alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_results import SYNTHETIC, point, result, rising, workers
from click.testing import CliRunner

from mixtral_client.bench.compare import NothingComparable, compare, unlike
from mixtral_client.bench.picture_data import Run
from mixtral_client.bench.result import BenchResult, ClosedLoad, OpenLoad, write_result
from mixtral_client.cli import main


def runs(*results: BenchResult) -> list[Run]:
    return [Run(name, each) for name, each in zip("ABC", results, strict=False)]


def test_ratios_are_of_each_load_to_the_first_run() -> None:
    comparison = compare(runs(result(workers((1, 4))), result(workers((1, 4), factor=2.0)), result(workers((4,)))))
    assert [pair.load for pair in comparison.points] == ["1 at once", "4 at once"]
    by_metric = {row.metric: row for row in comparison.points[1].metrics}
    ttft = by_metric["TTFT p50, s"]
    assert ttft.ratios == pytest.approx([1.0, 2.0, 1.0], rel=0.02)  # sending takes its millisecond every time
    assert ttft.values[1] == pytest.approx(2 * (ttft.values[0] or 0), rel=0.02)
    third = {row.metric: row for row in comparison.points[0].metrics}["TPOT p99, s"]
    assert third.ratios[2] is None  # the third run has no such load
    assert comparison.unmatched == []


def test_a_metric_that_no_run_has_is_left_out() -> None:
    pair = compare(runs(result(workers((1,))), result(workers((1,))))).points[0]
    assert not any(row.metric.startswith("goodput") for row in pair.metrics)


def test_unlike_loads_are_listed_with_what_differs() -> None:
    comparison = compare(runs(result(rising((1, 2))), result(rising((2, 3)))))
    assert [pair.load for pair in comparison.points] == ["2 requests/s"]
    assert [(entry.run, entry.reason) for entry in comparison.unmatched] == [
        ("A", "rate is 1 here and 2 in B"),
        ("B", "rate is 3 here and 1 in A"),
    ]


def test_another_workload_is_another_load() -> None:
    longer = replace(SYNTHETIC, output_tokens="256")
    with pytest.raises(NothingComparable, match="output_tokens is 128 here and 256 in B"):
        compare(runs(result([point(ClosedLoad(4))]), result([point(ClosedLoad(4), workload=longer)])))


def test_open_and_closed_loops_are_never_alike() -> None:
    with pytest.raises(NothingComparable, match="mode is closed here and open in B"):
        compare(runs(result(workers((1,))), result(rising((1,)))))


def test_seeds_do_not_make_another_load() -> None:
    a = point(OpenLoad(2.0, "poisson", 1), workload=replace(SYNTHETIC, seed=1))
    b = point(OpenLoad(2.0, "poisson", 2), workload=replace(SYNTHETIC, seed=2))
    assert unlike(a, b) == {}
    assert unlike(a, point(OpenLoad(2.0, "constant", 1))) == {"arrivals": ("poisson", "constant")}


def test_every_other_difference_is_said() -> None:
    other = replace(
        result(workers((1,)), precision="awq"), versions={"mixtral-triton": "0.2.0", "tritonclient": "2.73.0"}
    )
    found = {d.setting: d.values for d in compare(runs(result(workers((1,))), other)).differences}
    assert found == {"server.precision": ["int8", "awq"], "version.mixtral-triton": ["0.1.0", "0.2.0"]}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    a, b = tmp_path / "int8.json", tmp_path / "awq.json"
    write_result(result(rising((1, 2))), a)
    cut = point(OpenLoad(2.0, "poisson", 0), failed=3, partial=True)
    write_result(result([*rising((1,), factor=1.5), cut], precision="awq", partial=True), b)
    return str(a), str(b)


def test_the_command_prints_values_ratios_and_differences(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(main, ["bench", "compare", *files])
    assert done.exit_code == 0, done.output
    assert "512 in, 128 out, 1 requests/s" in done.stdout
    assert "awq/int8" in done.stdout
    line = next(line for line in done.stdout.splitlines() if "TTFT p50, s" in line)
    assert line.split()[-1] == "1.500"
    assert "partial, cut off before their end: awq" in done.stdout
    assert next(line for line in done.stdout.splitlines() if "errors" in line).split() == ["errors", "0", "3"]
    assert "server.precision  int8  awq" in done.stdout


def test_the_command_prints_json(files: tuple[str, str]) -> None:
    done = CliRunner().invoke(main, ["bench", "compare", *files, "--json"])
    answer = json.loads(done.stdout)
    assert answer["runs"] == ["int8", "awq"]
    assert answer["points"][0]["metrics"][0]["metric"] == "TTFT p50, s"
    assert answer["points"][0]["metrics"][0]["ratios"] == pytest.approx([1.0, 1.5])
    assert answer["partial"] == ["awq"]


def test_the_command_overlays_pictures(files: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    done = CliRunner().invoke(main, ["bench", "compare", *files, "--pictures", str(folder)])
    assert done.exit_code == 0, done.output
    text = (folder / "latency-rate.svg").read_text()
    assert all(label in text for label in ("int8, p50", "awq, p99", "arrival rate, requests/s", "partial run"))


def test_files_of_one_name_get_letters(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "result.json" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        write_result(result(workers((1,))), path)
    done = CliRunner().invoke(main, ["bench", "compare", *map(str, paths)])
    assert "B result/A result" in done.stdout
    assert "no other setting differs" in done.stdout


def test_errors_of_use_and_of_files(files: tuple[str, str], tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["bench", "compare", files[0]]).exit_code == 2
    broken = tmp_path / "broken.json"
    broken.write_text('{"format_version": 2}')
    done = CliRunner().invoke(main, ["bench", "compare", files[0], str(broken)])
    assert done.exit_code == 1
    assert "broken.json has format_version 2, this program reads 1" in done.stderr
    other = tmp_path / "closed.json"
    write_result(result(workers((1,))), other)
    done = CliRunner().invoke(main, ["bench", "compare", files[0], str(other)])
    assert done.exit_code == 1
    assert "mode is open here and closed in closed" in done.stderr
