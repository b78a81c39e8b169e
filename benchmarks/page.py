"""A page in docs/ that a program writes from results, whole or in part, and checks."""

import sys
from collections.abc import Callable
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
