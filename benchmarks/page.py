"""A page in docs/ that a program writes from results, whole or in part, and checks."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click


def page_command(page: Path, render: Callable[[], str]) -> click.Command:
    """The command of benchmarks/NAME_page.py, which writes `docs/NAME.md`. render: what the page should be."""

    @click.command(help=f"Write docs/{page.name} from the results.")
    @click.option("--check", is_flag=True, help="Write nothing, exit 1 if the page is not up to date.")
    def main(check: bool) -> None:
        text = render()
        if not check:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            program = f"benchmarks/{page.stem}_page.py"
            click.echo(f"error: {page.name} is not up to date, run: python {program}", err=True)
            sys.exit(1)

    return main


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """text: a page that is otherwise written by hand. Puts each block between the comments `<!-- NAME -->` and
    `<!-- end -->`, a pair of which the page must have for each name."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->\n\n", "\n<!-- end -->\n"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        assert found, f"the page has no {begin.strip()}"
        assert ended, f"the page has no end of {begin.strip()}"
        text = f"{before}{begin}{block}{end}{after}"
    return text
