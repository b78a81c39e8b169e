"""docs/cli.md is what the commands' own help says."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate_docs.py"


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_the_page_is_up_to_date() -> None:
    result = generate("--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_stale_page_is_found_and_named(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    page.write_text("# Command reference\n")
    result = generate("--check", "--page", str(page))
    assert result.returncode == 1
    assert result.stderr == "error: cli.md is not up to date, run: python scripts/generate_docs.py\n"
    assert page.read_text() == "# Command reference\n"
