"""Writes the results of `engine.py` into docs/engine.md, between two marks; the rest of that page is written by hand.

python benchmarks/engine_page.py            # write them
python benchmarks/engine_page.py --check    # exit 1 if they are not up to date
"""

import json
from pathlib import Path

import engine_tables
from page import page_command

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "engine.md"
BEGIN = "<!-- Written by benchmarks/engine_page.py. -->\n"
END = "<!-- By hand again. -->\n"
NOTHING = "Not measured yet: `make bench-engine`.\n"


def results_text(results: Path = RESULTS) -> str:
    """A chapter for each kind of machine that has a result file."""
    chapters = []
    for path in sorted(results.glob("*/engine.json")):
        report = json.loads(path.read_text())
        machine = report["machine"]
        picture = f"../benchmarks/results/{path.parent.name}/engine.png"
        title = f"{machine['processor']}, {machine['cores']} cores ([picture]({picture}))"
        chapters.append(f"{title}:\n\n{engine_tables.details(report)}")
    return "\n".join(chapters) or NOTHING


def render(page: str, results: Path = RESULTS) -> str:
    """The page with the results of now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{results_text(results)}\n{END}{after}"


main = page_command(PAGE, lambda: render(PAGE.read_text(encoding="utf-8")))

if __name__ == "__main__":
    main()
