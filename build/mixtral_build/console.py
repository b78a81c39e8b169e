"""What the commands share: kinds of arguments, how a result is printed, and how progress is shown."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

DIRECTORY = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
POSITIVE = click.IntRange(min=1)


def report(result: dict[str, Any], as_json: bool) -> None:
    """To stdout, a line for each key or one JSON object."""
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {part}" for name, part in value.items())
        click.echo(f"{key}: {value:.6g}" if isinstance(value, float) else f"{key}: {value}")


def notify(sentence: str) -> None:
    """To stderr, where it does not disturb a result."""
    click.echo(sentence, err=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (done, total), shown on stderr. Without a terminal nothing but the label is shown."""
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show
