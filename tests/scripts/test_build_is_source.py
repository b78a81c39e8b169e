"""Tools take a folder named `build` for output and pass over it; here it is source."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout


def test_ruff_reads_it() -> None:
    files = run(sys.executable, "-m", "ruff", "check", "--show-files")
    assert "build/mixtral_build/cli.py" in files
    assert "tests/build/test_cli.py" in files


def test_pytest_collects_its_tests(request: pytest.FixtureRequest) -> None:
    assert not {"build", "*"} & set(request.config.getini("norecursedirs"))


def test_git_does_not_ignore_it() -> None:
    assert run("git", "check-ignore", "build/mixtral_build/new.py", "tests/build/test_new.py") == ""
    assert run("git", "check-ignore", "checkpoints/x") == "checkpoints/x\n"


def test_make_clean_leaves_it() -> None:
    removed = run("make", "--dry-run", "clean")
    assert "rm -rf" in removed
    assert "build" not in removed
