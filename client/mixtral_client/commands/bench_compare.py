"""`mixtral bench compare`: results of `mixtral bench` beside each other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mixtral_client.bench.compare import Comparison, compare
from mixtral_client.bench.picture_data import Run
from mixtral_client.bench.pictures import draw_together
from mixtral_client.bench.result import read_result
from mixtral_client.bench.strict_json import to_json

_MOST_VALUE = 40  # characters of a differing setting that are shown


@click.command("compare")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Draw them over one another here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def compare_results(files: tuple[Path, ...], pictures: Path | None, as_json: bool) -> None:
    """Compare results with the first of FILES: for each load that they share, values and ratios.

    Points with another load or workload are not compared but listed with what differs, and so is every other setting
    that is not the same. Exit code 1 if no load is shared.

    \b
    Example:
      mixtral bench compare int8.json awq.json --pictures pictures
    """
    if len(files) < 2:
        raise click.UsageError("give two or more result files")
    runs = [Run(name, read_result(path)) for name, path in zip(_names(files), files, strict=True)]
    comparison = compare(runs)
    click.echo(json.dumps(to_json(comparison)) if as_json else "\n".join(_lines(comparison)))
    if pictures is not None:
        for path in draw_together(runs, pictures):
            click.echo(f"picture: {path}", err=True)


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names without suffix; with a letter before them where two are alike."""
    stems = [path.stem for path in files]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{chr(ord('A') + i % 26)} {stem}" for i, stem in enumerate(stems)]


def _lines(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    base, *others = comparison.runs
    if comparison.partial:
        lines += [f"partial, cut off before their end: {', '.join(comparison.partial)}", ""]
    for point in comparison.points:
        lines.append(f"{point.workload}, {point.load}")
        head = ["", *comparison.runs, *(f"{name}/{base}" for name in others)]
        rows = [
            [
                row.metric,
                *map(_number, row.values),
                *("-" if ratio is None else f"{ratio:.3f}" for ratio in row.ratios[1:]),
            ]
            for row in point.metrics
        ]
        if any(point.errors):
            rows.append(
                ["errors", *("-" if count is None else str(count) for count in point.errors), *("" for _ in others)]
            )
        lines += _table([head, *rows])
        lines += [f"  partial, cut off before its end: {', '.join(point.partial)}"] if point.partial else []
        lines.append("")
    if comparison.unmatched:
        lines.append("not compared:")
        lines += [f"  {entry.run}, {entry.point}: {entry.reason}" for entry in comparison.unmatched]
        lines.append("")
    if comparison.differences:
        lines.append("what else differs:")
        rows = [[entry.setting, *map(_shown, entry.values)] for entry in comparison.differences]
        lines += _table([["", *comparison.runs], *rows])
    else:
        lines.append("no other setting differs")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _shown(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_VALUE else f"{text[: _MOST_VALUE - 3]}..."
