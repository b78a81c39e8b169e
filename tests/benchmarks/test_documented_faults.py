"""The table of faults in the docs is that of the result file that it names, to the digit."""

from faults import PAGE, RESULTS, block


def test_the_table_of_faults() -> None:
    page = PAGE.read_text()
    (named,) = [path for path in RESULTS.glob("*/faults.json") if f"results/{path.parent.name}/{path.name}" in page]
    assert block(named) in page
