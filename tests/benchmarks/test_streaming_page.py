"""The tables of docs/streaming.md are those of the result files, to the digit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from streaming_page import BLOCKS, PAGE, RESULTS, main, render


def test_the_page_has_the_tables_of_the_result_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python benchmarks/streaming_page.py"
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


def test_every_result_that_the_page_names_is_there() -> None:
    links = [part.split(")")[0] for part in PAGE.read_text(encoding="utf-8").split("[result](")[1:]]
    assert len(links) >= len(BLOCKS)
    assert all((PAGE.parent / link).is_file() for link in links)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("streaming.json", lambda report: report["rounds"][0]["paced"][-1]["cpu_us"].update(server=9999.0)),
        ("streaming.json", lambda report: report["summary"]["first_token_p50_ms"]["ensemble"].update({"16": [77.0]})),
        ("detokenizer.json", lambda report: report["ways"][0].update(us_per_token=77.0)),
        ("detokenizer.json", lambda report: report["responses"][0].update(us_per_response=77.0)),
        ("tokenizer.json", lambda report: report["variants"][0].update(instance_mib=777.0)),
    ],
)
def test_a_result_that_changes_changes_the_page(
    file: str, change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    path = next(RESULTS.glob(f"*/{file}"))
    report = json.loads(path.read_text())
    copy = tmp_path / path.parent.name / file
    copy.parent.mkdir()
    copy.write_text(json.dumps(report))
    before = render(tmp_path)
    change(report)
    copy.write_text(json.dumps(report))
    assert render(tmp_path) != before


def test_what_was_not_measured_names_the_command(tmp_path: Path) -> None:
    page = render(tmp_path)
    assert all(f"Not measured yet: `{block.command}`." in page for block in BLOCKS.values())


def test_nvidia_s_models_have_rows_where_they_were_measured(tmp_path: Path) -> None:
    path = next(RESULTS.glob("*/streaming.json"))
    report = json.loads(path.read_text())
    for one in report["rounds"]:
        one["paced"] += [point | {"path": "nvidia"} for point in one["paced"] if point["path"] == "plain ensemble"]
    first = report["summary"]["first_token_p50_ms"]
    first["nvidia"] = first["plain ensemble"]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "streaming.json").write_text(json.dumps(report))
    page = render(tmp_path)
    assert "| added, p50, ms | ours | plain ensemble | NVIDIA's models |" in page
    assert "| 64 | NVIDIA's models | " in page
