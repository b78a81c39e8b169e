"""The figures in the docs are those of the result files, to the digit."""

import json
from pathlib import Path

import tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "intel-r-xeon-r-processor-amx-int8"
DOC = (ROOT / "docs" / "build.md").read_text()


def test_speed_and_memory_of_the_build() -> None:
    assert tables.build_table(json.loads((RESULTS / "build.json").read_text())) in DOC
