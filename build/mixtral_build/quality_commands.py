"""`mixtral-build evaluate` and `mixtral-build compare`: how good a model is, and what sets two apart."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from mixtral_build.console import AS_JSON, DIRECTORY, POSITIVE, progress_bar, report
from mixtral_runtime.errors import InvalidArgument

# What these commands import takes seconds (transformers), so it is imported when one of them runs.

TEXT_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
TEXT_HELP = 'a text file, or .jsonl or .parquet with a "text" in each line or row.'
QUESTIONS = click.Path(exists=True, path_type=Path)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _context_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--context", type=click.IntRange(min=2), default=2048, help="Tokens of a window.")(command)


def _compute_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")(command)
    return click.option(
        "--dtype", "dtype_name", type=click.Choice(list(DTYPES)), default="float32", help="Of the computation."
    )(command)


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--text", type=TEXT_FILE, help=f"Perplexity on {TEXT_HELP}")
@_context_option
@click.option("--stride", type=POSITIVE, help="Tokens from one window to the next.  [default: the context]")
@click.option("--multiple-choice", type=QUESTIONS, help="Accuracy on .csv (MMLU's), .parquet or .jsonl, or a folder.")
@click.option("--dev", type=QUESTIONS, help="Examples shown before each question, of the same kinds.")
@click.option("--shots", type=POSITIVE, default=5, help="How many examples, with --dev.")
@_compute_options
@click.option("--store", is_flag=True, help="Write the figures into the engine's manifest too.")
@AS_JSON
def evaluate(
    directory: Path,
    text: Path | None,
    context: int,
    stride: int | None,
    multiple_choice: Path | None,
    dev: Path | None,
    shots: int,
    device: str,
    dtype_name: str,
    store: bool,
    as_json: bool,
) -> None:
    """Measure a Hugging Face model, checkpoint or engine: perplexity on a text, accuracy on multiple choice.

    \b
    mixtral-build evaluate engines/default --text models/tiny-mixtral/heldout.jsonl
    """
    from mixtral_build.evaluate import evaluate_perplexity
    from mixtral_build.model_directory import ModelDirectory
    from mixtral_build.multiple_choice import evaluate_multiple_choice
    from mixtral_build.quality_store import check_storable, store_quality
    from mixtral_build.questions import read_questions
    from mixtral_build.texts import read_texts

    if text is None and multiple_choice is None:
        raise click.UsageError("give --text, --multiple-choice or both")
    model = ModelDirectory.open(directory)
    if store:
        check_storable(model)
    source = model.layers(_device(device), DTYPES[dtype_name])
    result: dict[str, Any] = {"directory": str(directory), "dtype": dtype_name}
    if text is not None:
        with progress_bar("perplexity") as progress:
            perplexity = evaluate_perplexity(
                source, model.tokenizer(), list(read_texts(text)), context=context, stride=stride, progress=progress
            )
        result["perplexity"] = {"file": text.name, **asdict(perplexity)}
    if multiple_choice is not None:
        examples = read_questions(dev) if dev is not None else []
        with progress_bar("multiple choice") as progress:
            accuracy = evaluate_multiple_choice(
                source,
                model.tokenizer(),
                read_questions(multiple_choice),
                examples,
                shots=shots if dev is not None else 0,
                progress=progress,
            )
        result["multiple_choice"] = {"file": multiple_choice.name, **asdict(accuracy)}
    if store:
        store_quality(directory, {key: result[key] for key in ("perplexity", "multiple_choice") if key in result})
    if not as_json and "multiple_choice" in result:
        for subject, figures in result["multiple_choice"].pop("subjects").items():
            click.echo(f"{subject}: accuracy {figures['accuracy']:.4f} of {figures['questions']} questions")
    report(result, as_json)


@click.command()
@click.argument("a", type=DIRECTORY)
@click.argument("b", type=DIRECTORY)
@click.option("--text", required=True, type=TEXT_FILE, help=f"What both models read: {TEXT_HELP}")
@_context_option
@_compute_options
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the layers to this PNG file.")
@click.option("--store", is_flag=True, help="Write the figures into the manifest of engine B too.")
@AS_JSON
def compare(
    a: Path,
    b: Path,
    text: Path,
    context: int,
    device: str,
    dtype_name: str,
    picture: Path | None,
    store: bool,
    as_json: bool,
) -> None:
    """Measure what sets model, checkpoint or engine B apart from A, usually the 16-bit one, on a text.

    \b
    mixtral-build compare models/tiny-mixtral checkpoints/tiny-int8 --text models/tiny-mixtral/heldout.jsonl
    """
    from mixtral_build.compare import compare_models
    from mixtral_build.compare_report import draw, load_figure_class, table
    from mixtral_build.model_directory import ModelDirectory
    from mixtral_build.quality_store import check_storable, store_quality
    from mixtral_build.texts import read_texts

    figure_class = load_figure_class() if picture is not None else None
    if picture is not None and not picture.parent.is_dir():
        raise InvalidArgument(f"{picture.parent}, the folder of --picture, does not exist")
    one, other = ModelDirectory.open(a), ModelDirectory.open(b)
    if store:
        check_storable(other)
    with progress_bar("comparing") as progress:
        comparison = compare_models(
            one,
            other,
            list(read_texts(text)),
            context=context,
            device=_device(device),
            dtype=DTYPES[dtype_name],
            progress=progress,
        )
    if picture is not None and figure_class is not None:
        draw(comparison, figure_class, picture)
    if store:
        store_quality(b, {"comparison": {"file": text.name, **asdict(comparison)}})
    if as_json:
        report(asdict(comparison), as_json)
    else:
        click.echo(table(comparison))


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("--device is cuda, this machine has no GPU that PyTorch can use")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))
