"""`mixtral bench`: how fast a server is, under a load that can be repeated."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mixtral_client.bench.exchange import Target
from mixtral_client.bench.measure import Outcome, run_bench
from mixtral_client.bench.pictures import draw
from mixtral_client.bench.report import Progress, table
from mixtral_client.bench.result import write_result
from mixtral_client.bench.strict_json import to_json
from mixtral_client.bench.style import plotting
from mixtral_client.commands.bench_options import bench_options, resolve
from mixtral_client.commands.options import Connection, connection_options
from mixtral_client.errors import MixtralClientError, ServerUnreachable, Unavailable

_INTERRUPTED = 130


@click.group(invoke_without_command=True)
@bench_options
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write a JSON file with every request."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON instead of the table.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Draw the results into a folder.")
@connection_options
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    preset: str | None,
    output: Path | None,
    as_json: bool,
    pictures: Path | None,
    connection: Connection,
    **given: Any,
) -> None:
    """Measure a server: time to first token, time per output token, throughput, goodput and cost.

    Every load level is one point. Ctrl-C ends the run and keeps what was measured, marked as partial. Exit code 1 if
    the server was lost or no request completed. The figures are defined in docs/benchmarking.md.

    \b
    Examples:
      mixtral bench --input-tokens 512 --output-tokens 128 --concurrency 1,2,4,8
      mixtral bench --rate 0.5,1,2,4 --duration 60 --slo ttft_p99=200ms,tpot_p99=20ms --output result.json
      mixtral bench --search-rate 0.5-20 --slo ttft_p99=200ms
      mixtral bench --preset friendli --prompts dolly.jsonl --pictures pictures
    """
    if ctx.invoked_subcommand is not None:
        return
    options = resolve(preset, given)
    if pictures is not None:
        plotting()  # says before the run what would be missing after it
    if output is not None and not output.absolute().parent.is_dir():
        raise click.UsageError(f"the folder of --output {output} does not exist")
    with connection.open() as client:
        status = client.status()
    if not status.ready:
        raise Unavailable(f"{status.url} is not ready")
    progress = Progress(lambda line: click.echo(line, err=True))
    target = Target(connection.url, connection.idle_timeout, connection.tls)
    with _interruption() as stopping:
        outcome = run_bench(options, target, status, stopping=stopping, observer=progress)
        if output is not None:
            write_result(outcome.result, output)
    click.echo(_summary(outcome) if as_json else table(outcome.result))
    if pictures is not None:
        for path in draw(outcome.result, pictures):
            click.echo(f"picture: {path}", err=True)
    if outcome.interrupted:
        ctx.exit(_INTERRUPTED)
    if outcome.lost is not None:
        raise ServerUnreachable(f"the run ended early: {outcome.lost}")
    if not any(point.summary.completed for point in outcome.result.points):
        raise MixtralClientError("no request completed")


def _summary(outcome: Outcome) -> str:
    """The result file without the requests."""
    result = to_json(outcome.result)
    for point in result["points"]:
        del point["requests"]
    return json.dumps(result)


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C has come. A second one interrupts at once, as usual."""
    seen = False

    def note(*_: object) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
