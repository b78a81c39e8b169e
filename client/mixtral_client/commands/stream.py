"""`mixtral stream`: one prompt, continued."""

import sys

import click

from mixtral_client.commands.options import (
    Connection,
    Display,
    connection_options,
    display_options,
    generation_options,
)
from mixtral_client.commands.output import check_display, show
from mixtral_client.generation import GenerationOptions


class TokenIds(click.ParamType):  # type: ignore[type-arg]  # only newer clicks can be subscripted
    """A comma-separated list of token ids."""

    name = "IDS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of token ids", param, ctx)


@click.command()
@click.argument("prompt", required=False)
@click.option("--input-ids", type=TokenIds(), help="A tokenised prompt instead of PROMPT, for example 1,315,837.")
@generation_options
@display_options
@connection_options
def stream(
    prompt: str | None,
    input_ids: list[int] | None,
    options: GenerationOptions,
    display: Display,
    connection: Connection,
) -> None:
    """Continue PROMPT and print the text as it arrives. A PROMPT of - reads it from stdin.

    No chat template is applied; for questions to an instruction model see `mixtral chat`. Ctrl-C ends the generation on
    the server too.

    \b
    Examples:
      mixtral stream "Once upon a time" --max-tokens 64
      mixtral stream - --temperature 0.8 --seed 7 < story.txt
      mixtral stream "2 + 2 =" --stop . --json --top-log-probs 3
    """
    if (prompt is None) == (input_ids is None):
        raise click.UsageError("give either PROMPT (- reads stdin) or --input-ids")
    check_display(options, display)
    if prompt == "-":
        prompt = sys.stdin.read()
    with connection.open() as client:
        show(client.stream(prompt, input_ids=input_ids, options=options), display)
