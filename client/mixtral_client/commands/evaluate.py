"""`mixtral eval perplexity` and `mixtral eval multiple-choice`: how good the served model is."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from mixtral_client.commands.options import Connection, connection_options
from mixtral_client.errors import MixtralClientError
from mixtral_client.evaluation.multiple_choice import evaluate_multiple_choice
from mixtral_client.evaluation.perplexity import evaluate_perplexity
from mixtral_client.evaluation.questions import read_questions
from mixtral_client.evaluation.scorer import Progress, Scorer, Scores
from mixtral_client.evaluation.texts import read_texts
from mixtral_client.status import ServerStatus

INTERRUPTED = 130
DEFAULT_CONCURRENCY = 8  # of a server that does not tell its batch size

Figures = TypeVar("Figures")
Measure = Callable[[Scorer, int | None, Progress], Awaitable[tuple[Figures | None, Scores]]]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_QUESTIONS = click.Path(exists=True, path_type=Path)
_POSITIVE = click.IntRange(min=1)


@click.group("eval")
def evaluate() -> None:
    """Measure the served model's quality from the log probabilities that it gives to prompts.

    Definitions, files and figures are those of `mixtral-build evaluate`. Requests that fail are counted and left out,
    and the exit code is then 1. Ctrl-C reports what was measured so far, marked as partial, with exit code 130.
    """


def _common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    concurrency = click.option(
        "--concurrency", type=_POSITIVE, help="Requests at once.  [default: the server's batch size]"
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
    return concurrency(as_json(connection_options(command)))


@evaluate.command()
@click.argument("file", type=_FILE)
@click.option("--context", type=click.IntRange(min=2), default=2048, show_default=True, help="Tokens of a window.")
@click.option("--stride", type=_POSITIVE, help="Tokens from one window to the next.  [default: the context]")
@_common_options
@click.pass_context
def perplexity(
    ctx: click.Context,
    file: Path,
    context: int,
    stride: int | None,
    concurrency: int | None,
    as_json: bool,
    connection: Connection,
) -> None:
    """Perplexity on FILE: a text file, or .jsonl or .parquet with a "text" in each line or row.

    A context above the server's longest prompt is cut to it.

    \b
    Example:
      mixtral eval perplexity models/tiny-mixtral/heldout.jsonl --json
    """
    texts = read_texts(file)

    async def measure(scorer: Scorer, longest: int | None, progress: Progress) -> Any:
        window = context if longest is None else min(context, longest)
        if window < context:
            click.echo(f"the context is {window} tokens, the server's longest prompt", err=True)
        return await evaluate_perplexity(scorer, texts, context=window, stride=stride, progress=progress)

    _report(ctx, "perplexity", file, _run(connection, concurrency, "perplexity", measure), as_json)


@evaluate.command("multiple-choice")
@click.argument("file", type=_QUESTIONS)
@click.option("--dev", type=_QUESTIONS, help="Examples shown before each question, of the same kinds of files.")
@click.option("--shots", type=_POSITIVE, default=5, show_default=True, help="How many examples, with --dev.")
@_common_options
@click.pass_context
def multiple_choice(
    ctx: click.Context,
    file: Path,
    dev: Path | None,
    shots: int,
    concurrency: int | None,
    as_json: bool,
    connection: Connection,
) -> None:
    """Accuracy on the questions in FILE: .csv (MMLU's), .parquet or .jsonl, or a folder of them.

    Each choice of a question is one request.

    \b
    Example:
      mixtral eval multiple-choice mmlu/test --dev mmlu/dev --shots 5
    """
    questions = read_questions(file)
    examples = read_questions(dev) if dev is not None else []

    async def measure(scorer: Scorer, longest: int | None, progress: Progress) -> Any:
        return await evaluate_multiple_choice(
            scorer, questions, examples, shots=shots if examples else 0, longest=longest, progress=progress
        )

    _report(ctx, "multiple_choice", file, _run(connection, concurrency, "multiple choice", measure), as_json)


def _run(
    connection: Connection, concurrency: int | None, label: str, measure: Measure[Figures]
) -> tuple[ServerStatus, Figures | None, Scores]:
    async def run() -> tuple[ServerStatus, Figures | None, Scores]:
        async with connection.open_async() as client:
            status = await client.status()
            if not status.ready:
                raise MixtralClientError(f"{status.url} is not ready")
            if not status.manifest.get("returns", {}).get("prompt_log_probs", True):
                raise MixtralClientError("this server's engine returns no log probabilities of prompts")
            at_once = concurrency or status.limits.get("max_batch_size") or DEFAULT_CONCURRENCY
            with _progress_bar(label) as progress:
                figures, scores = await measure(Scorer(client, at_once), _longest_prompt(status.limits), progress)
            return status, figures, scores

    return asyncio.run(run())


def _longest_prompt(limits: dict[str, Any]) -> int | None:
    """With room for the one token that every request generates."""
    if "max_input_len" not in limits or "max_seq_len" not in limits:
        return None
    return int(min(limits["max_input_len"], limits["max_seq_len"] - 1))


@contextmanager
def _progress_bar(label: str) -> Iterator[Progress]:
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show


def _report(
    ctx: click.Context, name: str, file: Path, measured: tuple[ServerStatus, Any, Scores], as_json: bool
) -> None:
    """The figures on stdout, what they lack on stderr, and the exit code."""
    status, figures, scores = measured
    if figures is None and not scores.interrupted:
        raise MixtralClientError(
            f"nothing was measured, {sum(scores.errors.values())} requests failed: {scores.first_error}"
        )
    if figures is not None:
        result: dict[str, Any] = {
            "url": status.url,
            "runtime": status.manifest.get("runtime"),
            "precision": status.manifest.get("precision"),
            "partial": scores.partial,
            "requests": len(scores.log_likelihoods),
            "done": scores.done,
            "errors": dict(scores.errors),
            name: {"file": file.name, **asdict(figures)},
        }
        click.echo(json.dumps(result) if as_json else _describe(result, name))
    if scores.errors:
        click.echo(f"error: {sum(scores.errors.values())} requests failed, the first: {scores.first_error}", err=True)
    if scores.partial:
        click.echo(f"partial: {scores.done} of {len(scores.log_likelihoods)} requests are in the figures", err=True)
    if scores.interrupted:
        ctx.exit(INTERRUPTED)
    if scores.partial:
        ctx.exit(1)


def _describe(result: dict[str, Any], name: str) -> str:
    figures = dict(result[name])
    lines = [
        f"{subject}: accuracy {one['accuracy']:.4f} of {one['questions']} questions"
        for subject, one in figures.pop("subjects", {}).items()
    ]
    lines.append(f"{name}: " + ", ".join(f"{key} {_number(value)}" for key, value in figures.items()))
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
