"""A page that is written from results, whole or in part: written, found stale, found missing."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from page import page_command, with_blocks


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


def test_blocks_replace_what_stands_between_their_comments_and_nothing_else() -> None:
    page = "a\n<!-- one -->\n\nold\n\n<!-- end -->\nb\n<!-- two -->\n\n\n<!-- end -->\nc\n"
    written = with_blocks(page, {"one": "new 1\n", "two": "2\n"})
    assert written == "a\n<!-- one -->\n\nnew 1\n\n<!-- end -->\nb\n<!-- two -->\n\n2\n\n<!-- end -->\nc\n"
    assert with_blocks(written, {"one": "new 1\n", "two": "2\n"}) == written
    with pytest.raises(AssertionError, match="the page has no <!-- three -->"):
        with_blocks(page, {"three": ""})
