"""`mixtral chat`: a conversation through the model's chat template."""

import contextlib
import importlib
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
from mixtral_client.errors import ServerError
from mixtral_client.generation import GenerationOptions, Message
from mixtral_client.sync import Client


@click.command()
@click.argument("question", required=False)
@generation_options
@display_options
@connection_options
def chat(question: str | None, options: GenerationOptions, display: Display, connection: Connection) -> None:
    """Ask QUESTION through the model's chat template and print the answer as it arrives.

    A QUESTION of - reads it from stdin. Without QUESTION, at a terminal, a conversation begins: each answer sees all
    turns before it. There, /reset forgets them and Ctrl-D ends.

    \b
    Examples:
      mixtral chat "Why is the sky blue?"
      mixtral chat --temperature 0.7
    """
    check_display(options, display)
    if question == "-":
        question = sys.stdin.read()
    if question is None and display.as_json:
        raise click.UsageError("--json needs a QUESTION")
    if question is None and not sys.stdin.isatty():
        raise click.UsageError("give a QUESTION (- reads stdin), or run this at a terminal")
    with connection.open() as client:
        if question is None:
            _converse(client, options, display)
        else:
            show(client.stream(messages=[Message(role="user", content=question)], options=options), display)


def _converse(client: Client, options: GenerationOptions, display: Display) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` line editing and a history, where Python has it
    click.echo("Ctrl-D ends, /reset forgets the conversation.", err=True)
    turns: list[Message] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line == "/reset":
            turns.clear()
        elif line:
            turns = _turn(client, [*turns, Message(role="user", content=line)], options, display) or turns


def _turn(client: Client, turns: list[Message], options: GenerationOptions, display: Display) -> list[Message] | None:
    """The conversation with the answer to its last turn; None if the server refused, so that one can go on without."""
    try:
        answer = show(client.stream(messages=turns, options=options), display)
    except ServerError as error:
        click.echo(f"error: {error}", err=True)
        return None
    return [*turns, Message(role="assistant", content=answer.text)]
