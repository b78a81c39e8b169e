"""Writes docs/cli.md from the commands' own help pages.

python scripts/generate_docs.py            # write it
python scripts/generate_docs.py --check    # exit 1 if it is not up to date
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

COMMANDS = {
    "mixtral": "mixtral_client.cli:main",
    "mixtral-build": "mixtral_build.cli:cli",
    "mixtral-gateway": "mixtral_gateway.cli:main",
}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
WIDTH = 100
INTRODUCTION = """\
# Command reference

Written by `scripts/generate_docs.py` from the commands' `--help`; do not edit it by hand.
"""


def help_pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """The full name and the help text of a command and, after it, of all its subcommands."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for subcommand in command.list_commands(context):
            child = command.get_command(context, subcommand)
            if child is not None:
                yield from help_pages(child, subcommand, context)


def render() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for name, place in COMMANDS.items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        sections += [f"## `{path}`\n\n```text\n{text}\n```\n" for path, text in help_pages(command, name)]
    return "\n".join(sections)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing, exit 1 if the page is not up to date.")
@click.option(
    "--page", type=click.Path(path_type=Path), default=PAGE, show_default=False, help="Instead of docs/cli.md."
)
def main(check: bool, page: Path) -> None:
    """Write docs/cli.md from the commands' own help pages."""
    text = render()
    if not check:
        page.write_text(text, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        click.echo(f"error: {page.name} is not up to date, run: python scripts/generate_docs.py", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
