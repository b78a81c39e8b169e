"""Shows, inside NVIDIA's image, that TensorRT-LLM is what this project was written for; run it once per machine.

One line per check: PASS, FAIL with advice, SKIPPED after a failure that it depends on, or NOT AVAILABLE HERE, which is
never a pass. The report of --json is for attaching to a bug; it holds versions, hardware and every line.

\b
Exit codes: 0 everything passed, 1 something failed, 2 wrong usage, 3 nothing failed but something was not available,
130 interrupted.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
from container_check.check import Check, run_all, select
from container_check.checks import CHECKS
from container_check.machine import look_around
from container_check.report import exit_code, page, to_json
from container_check.workplace import ROOT, Workplace

from mixtral_runtime.errors import MixtralError


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--json", "report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to this file."
)
@click.option("--only", "names", multiple=True, metavar="NAME", help="Only this check and what it needs; repeatable.")
@click.option("--list", "listing", is_flag=True, help="List the checks and what each shows, run nothing.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep engines and logs in this folder.")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT / "models" / "tiny-mixtral",
    show_default="the demo model",
    help="Hugging Face Mixtral that the engines are built of.",
)
def main(report: Path | None, names: tuple[str, ...], listing: bool, keep: Path | None, model: Path) -> int:
    if listing:
        click.echo("\n".join(f"{check.name:18}{check.shows}" for check in CHECKS))
        return 0
    try:
        checks = select(CHECKS, names)
    except MixtralError as error:
        raise click.BadParameter(str(error), param_hint="--only") from error
    if report is not None:
        _check_writable(report)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = look_around()
    with ExitStack() as stack:
        folder = (keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="container-check-")))).resolve()
        results = run_all(checks, Workplace(folder, model.resolve(), machine), _progress)
        if report is not None:
            data = to_json(machine, results, started_at, folder)
            report.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    click.echo(page(machine, results))
    return exit_code(results)


def _check_writable(report: Path) -> None:
    """Now, not after half an hour."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with report.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise click.BadParameter(f"{report} cannot be written: {error.strerror}", param_hint="--json") from error


def _progress(check: Check) -> None:
    click.echo(f"{check.name}: {check.shows}?", err=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code."""
    try:
        return int(main.main(arguments, prog_name="check_container.py", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(run())
