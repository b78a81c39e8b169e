"""Programs of others, as `make test-external` provides them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def find_tool(program: str) -> str:
    """Fails when the program is missing: here nothing is skipped."""
    found = shutil.which(program, path=ROOT / ".tools" / "bin") or shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is missing; run these tests with `make test-external`, which fetches it")
    return found


def run_tool(program: str, *arguments: str | Path, stdin: str = "") -> str:
    """What the program says on both outputs; fails with it when the exit code is not 0."""
    done = subprocess.run(
        [find_tool(program), *arguments], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        pytest.fail(f"{program} {' '.join(map(str, arguments))} failed:\n{done.stdout}")
    return done.stdout
