"""The table of AIPerf beside `mixtral bench` in the docs is that of the result file, to the digit."""

import json
from pathlib import Path

from aiperf_agreement import TABLE, agreement_table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "intel-r-xeon-r-processor-amx-int8" / "aiperf-agreement.json"


def test_the_table_of_agreement() -> None:
    page = (ROOT / "docs" / "benchmarking.md").read_text()
    assert TABLE.findall(page) == [agreement_table(json.loads(RESULT.read_text()))]
