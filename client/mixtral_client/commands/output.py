"""Shows a generation: text or JSON on stdout, the usage line on stderr."""

import contextlib
import json
from collections.abc import Generator

import click

from mixtral_client.commands.options import Display
from mixtral_client.errors import MixtralClientError
from mixtral_client.generation import Chunk, GenerationOptions, Result, Usage

# The server ended these on its own account, so the text is not what was asked for.
_FAILED = ("cancelled", "error")
# Seconds. Over a shorter time than this the rate says how the responses were grouped, not how fast the model is.
_SHORTEST_RATE_S = 0.1


def check_display(options: GenerationOptions, display: Display) -> None:
    """Raises UsageError if something is asked for that only JSON can show."""
    shown_as_json = {
        "--token-ids": options.return_output_ids,
        "--log-probs": options.return_log_probs,
        "--prompt-log-probs": options.return_prompt_log_probs,
    }
    for name, asked in shown_as_json.items():
        if asked and not display.as_json:
            raise click.UsageError(f"{name} needs --json")


def show(chunks: Generator[Chunk, None, None], display: Display) -> Result:
    """Prints a generation while it comes and returns it. Whatever interrupts the printing cancels the request."""
    parts = []
    live = display.stream and not display.as_json
    with contextlib.closing(chunks):
        for chunk in chunks:
            parts.append(chunk)
            if live:
                click.echo(chunk.text, nl=False)  # flushes
    result = Result.join(parts)
    if display.as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        click.echo("" if live else result.text)
    if not display.quiet:
        click.echo(usage_line(result.usage, result.finish_reason), err=True)
    if result.finish_reason in _FAILED:
        raise MixtralClientError(f"the server ended the generation early: {result.finish_reason}")
    return result


def usage_line(usage: Usage, finish_reason: str | None) -> str:
    """For example "12 tokens in, 64 out, 0.127 s to first token, 81.0 tokens/s, 0.91 s in all, finished: length"."""
    parts = []
    if usage.num_input_tokens is not None:
        parts.append(f"{usage.num_input_tokens} tokens in")
    if usage.num_output_tokens is not None:
        parts.append(f"{usage.num_output_tokens} out")
    if usage.ttft_s is not None:
        parts.append(f"{usage.ttft_s:.3f} s to first token")
    streamed_s = usage.total_s - (usage.ttft_s or 0.0)
    if usage.tokens_per_s is not None and streamed_s >= _SHORTEST_RATE_S:
        parts.append(f"{usage.tokens_per_s:.1f} tokens/s")
    parts.append(f"{usage.total_s:.2f} s in all")
    parts.append(f"finished: {finish_reason or 'no reason given'}")
    return ", ".join(parts)
