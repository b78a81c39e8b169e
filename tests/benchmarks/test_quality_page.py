"""docs/quality.md says what was measured, to the digit, and the program that writes it would write the same again."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from quality_page import PAGE, RESULTS, SERVED, main, render

REPORTS = sorted(RESULTS.glob(f"*/{SERVED}"))


def test_the_page_is_that_of_the_result_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python benchmarks/quality_page.py"
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_the_server_gives_what_the_weights_give(path: Path) -> None:
    """bfloat16 on both sides; the orders of the sums differ, on this text by parts in ten thousand."""
    results = json.loads(path.read_text())["results"]
    assert set(results) == {"16bit", "int8", "fp8", "awq"}
    for one in results.values():
        served, direct = one["served"]["perplexity"], one["bfloat16"]["perplexity"]
        assert served == direct | {"perplexity": pytest.approx(direct["perplexity"], rel=1e-3)}


def test_a_result_that_changes_changes_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(REPORTS[0].parent, folder, ignore=shutil.ignore_patterns("*.png"))
    before = render(tmp_path)
    report = json.loads((folder / SERVED).read_text())
    report["results"]["int8"]["served"]["perplexity"]["perplexity"] += 1e-5
    (folder / SERVED).write_text(json.dumps(report))
    assert render(tmp_path) != before
