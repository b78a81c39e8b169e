"""Writes the tables of docs/streaming.md that come from result files; the rest of the page is written by hand.

python benchmarks/streaming_page.py            # write them
python benchmarks/streaming_page.py --check    # exit 1 if they are not up to date
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streaming_tables
from page import page_command, with_blocks
from tables import source_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "streaming.md"


@dataclass(frozen=True, slots=True)
class Block:
    """file: of the result. text: made of its content. command: measures again."""

    file: str
    text: Callable[[Mapping[str, Any]], str]
    command: str


BLOCKS = {
    "response costs": Block("streaming.json", streaming_tables.response_costs, "make bench-streaming"),
    "low load": Block("streaming.json", streaming_tables.low_load, "make bench-streaming"),
    "detokenizer": Block("detokenizer.json", streaming_tables.detokenizer, "make bench-text"),
    "tokenizer": Block("tokenizer.json", streaming_tables.tokenizer, "make bench-text"),
}


def render(results: Path = RESULTS) -> str:
    """The page with the tables of every machine that was measured."""
    blocks = {name: _rendered(block, sorted(results.glob(f"*/{block.file}"))) for name, block in BLOCKS.items()}
    return with_blocks(PAGE.read_text(encoding="utf-8"), blocks)


def _rendered(block: Block, paths: list[Path]) -> str:
    found = []
    for path in paths:
        report = json.loads(path.read_text())
        found.append(f"{block.text(report)}\n{source_line(path, report, block.command)}")
    return "\n".join(found) or f"Not measured yet: `{block.command}`.\n"


main = page_command(PAGE, render)

if __name__ == "__main__":
    main()
