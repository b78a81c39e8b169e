"""Runs the tests that break a server and writes what they saw, with its times, into docs/reliability.md.

python benchmarks/faults.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from machine import describe, slug
from page import with_blocks
from tables import Rows, markdown, source_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"


def fault_table(report: dict[str, Any]) -> str:
    """Of `faults.json`."""
    rows: Rows = [("fault", "what the client sees", "after, s", "service back after, s", "lost")]
    for fault in report["faults"]:
        after = f"{fault['seen_after_s']:.1f}" if fault["seen"] != "nothing" else "–"
        stays = "at the next start" if fault["ended"] else "never away"
        back = stays if fault["back_after_s"] is None else f"{fault['back_after_s']:.1f}"
        rows.append((fault["fault"], fault["seen"], after, back, fault["lost"]))
    return markdown(rows)


def block(path: Path) -> str:
    """The table of a result file, and where it comes from."""
    report = json.loads(path.read_text())
    return f"{fault_table(report)}\n{source_line(path, report, 'make bench-faults')}"


@click.command(help=__doc__)
def main() -> None:
    folder = RESULTS / slug(str(describe(())["processor"]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faults.json"
    tests = [str(ROOT / "tests" / "system" / f"test_faults_{part}.py") for part in ("restart", "requests", "launcher")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=os.environ | {"MIXTRAL_FAULTS": str(path)}, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    PAGE.write_text(with_blocks(PAGE.read_text(), {"faults": block(path)}))


if __name__ == "__main__":
    main()
