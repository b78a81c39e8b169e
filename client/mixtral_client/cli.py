"""The `mixtral` command."""

from typing import IO, Any

import click

from mixtral_client.commands.bench import bench
from mixtral_client.commands.bench_compare import compare_results
from mixtral_client.commands.chat import chat
from mixtral_client.commands.evaluate import evaluate
from mixtral_client.commands.status import status
from mixtral_client.commands.stream import stream
from mixtral_client.errors import MixtralClientError

INTERRUPTED = 130


class Failure(click.ClickException):
    """A known error: one line on stderr and exit code 1, no traceback."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", err=True)


class _Commands(click.Group):
    """Gives all commands the same end: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MixtralClientError, KeyboardInterrupt, click.Abort) as error:
            # Leaving the stream has cancelled the request already. Click would exit with 1.
            if _was_interrupted(error):
                ctx.exit(INTERRUPTED)
            raise Failure(str(error)) from error


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or what an interrupt broke on its way out."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | click.Abort):
            return True
        error = error.__context__
    return False


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Generate text on a Mixtral server over gRPC.

    Text goes to stdout as it arrives, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
    interrupted.

    \b
    Example:
      mixtral stream "Once upon a time" --max-tokens 64
    """


main.add_command(stream)
main.add_command(chat)
main.add_command(status)
main.add_command(evaluate)
main.add_command(bench)
bench.add_command(compare_results)
