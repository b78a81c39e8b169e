"""A page that is written from results: written, found stale, found missing."""

from pathlib import Path

from click.testing import CliRunner
from page import page_command


def test_a_stale_or_missing_page_is_named_with_the_program_that_writes_it(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    command, runner = page_command(page, lambda: "new\n"), CliRunner()
    for make in (lambda: None, lambda: page.write_text("old\n")):
        make()
        found = runner.invoke(command, ["--check"])
        assert found.exit_code == 1
        assert "speed.md is not up to date, run: python benchmarks/speed_page.py" in found.output
    assert page.read_text() == "old\n"
    assert runner.invoke(command, []).exit_code == 0
    assert page.read_text() == "new\n"
    assert runner.invoke(command, ["--check"]).exit_code == 0
