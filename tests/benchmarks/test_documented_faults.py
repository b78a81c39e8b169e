"""The table of faults in the docs is that of the result file, to the digit."""

import json
from pathlib import Path

from faults import fault_table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "intel-r-xeon-r-processor-amx-int8" / "faults.json"


def test_the_table_of_faults() -> None:
    assert fault_table(json.loads(RESULT.read_text())) in (ROOT / "docs" / "reliability.md").read_text()
