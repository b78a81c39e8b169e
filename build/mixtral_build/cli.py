"""`mixtral-build`: quantise a model, build an engine directory, check and compare them.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mixtral_build.engine import (
    GPU_ARCHITECTURES,
    RUNTIMES,
    LimitOverrides,
    build_pytorch_engine,
    choose_gpu,
    choose_runtime,
    engine_summary,
)
from mixtral_build.quantize import quantize_model
from mixtral_build.verify import verify_directory
from mixtral_runtime.config import DTYPES, LAYOUTS
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.formats import FORMATS

DIRECTORY = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
POSITIVE = click.IntRange(min=1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def cli() -> None:
    """From a Hugging Face Mixtral to a quantised checkpoint to an engine directory."""


@cli.command()
@click.argument("model_dir", type=DIRECTORY)
@click.argument("checkpoint_dir", type=DIRECTORY)
@click.option("--precision", type=click.Choice(list(FORMATS)), default="int8", help="How the weights are stored.")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="Arrangement of int8 weights: plain for the PyTorch runtime, sm80 (A100) or sm90 (H100) for TensorRT-LLM."
    "  [default: plain]",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of activations and scales.  [default: the model's]")
@AS_JSON
def quantize(
    model_dir: Path, checkpoint_dir: Path, precision: str, layout: str | None, dtype: str | None, as_json: bool
) -> None:
    """Quantise the Hugging Face model in MODEL_DIR into the new directory CHECKPOINT_DIR.

    \b
    mixtral-build quantize models/tiny-mixtral checkpoints/tiny-int8 --precision int8
    """
    with _progress_bar("quantising") as progress:
        summary = quantize_model(model_dir, checkpoint_dir, precision, layout=layout, dtype=dtype, progress=progress)
    _report(asdict(summary), as_json)


@cli.command()
@click.argument("checkpoint_dir", type=DIRECTORY)
@click.argument("engine_dir", type=DIRECTORY)
@click.option("--runtime", type=click.Choice(RUNTIMES), default="auto", help="What will run the engine.")
@click.option("--gpu", type=click.Choice(["auto", *GPU_ARCHITECTURES]), default="auto", help="What it will run on.")
@click.option("--max-batch-size", type=POSITIVE, help="Sequences decoded at once.  [default: 16]")
@click.option("--max-input-len", type=POSITIVE, help="Tokens of a prompt.  [default: max-seq-len - 1]")
@click.option("--max-seq-len", type=POSITIVE, help="Tokens of prompt and output.  [default: 4096 or the model's limit]")
@click.option("--max-num-tokens", type=POSITIVE, help="Tokens of one step.  [default: 512 on CPU, 2048 on GPU]")
@click.option("--max-queue-size", type=click.IntRange(min=0), help="Waiting requests.  [default: 256]")
@click.option("--kv-cache-tokens", type=POSITIVE, help="Size of the KV cache.  [default: planned when loading]")
@click.option("--replace", "replace_existing", is_flag=True, help="Replace the engine that ENGINE_DIR already holds.")
@AS_JSON
def engine(
    checkpoint_dir: Path,
    engine_dir: Path,
    runtime: str,
    gpu: str,
    kv_cache_tokens: int | None,
    replace_existing: bool,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Build the new directory ENGINE_DIR, ready to serve, from the checkpoint in CHECKPOINT_DIR.

    \b
    mixtral-build engine checkpoints/tiny-int8 engines/tiny-int8 --runtime pytorch
    """
    chosen_runtime, chosen_gpu = choose_runtime(runtime), choose_gpu(gpu)
    click.echo(f"runtime {chosen_runtime.value}: {chosen_runtime.reason}", err=True)
    click.echo(f"gpu {chosen_gpu.value}: {chosen_gpu.reason}", err=True)
    manifest = build_pytorch_engine(
        checkpoint_dir,
        engine_dir,
        gpu=chosen_gpu.value,
        limits=LimitOverrides(**limits),
        kv_cache_tokens=kv_cache_tokens,
        replace_existing=replace_existing,
    )
    _report(engine_summary(engine_dir, manifest, chosen_runtime, chosen_gpu), as_json)


@cli.command()
@click.argument("directory", type=DIRECTORY)
@AS_JSON
def verify(directory: Path, as_json: bool) -> None:
    """Check the structure of a checkpoint or engine in DIRECTORY, and an engine's files against their SHA-256."""
    with _progress_bar("checking") as progress:
        summary = verify_directory(directory, progress)
    _report(asdict(summary), as_json)


@cli.command()
@click.argument("a", type=DIRECTORY)
@click.argument("b", type=DIRECTORY)
@click.option(
    "--text",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='What both models read: a text file, or .jsonl with a "text" per line.',
)
@AS_JSON
def compare(a: Path, b: Path, text: Path, as_json: bool) -> None:
    """Measure what sets checkpoint or engine B apart from A, usually the 16-bit one, on a text.

    \b
    mixtral-build compare checkpoints/tiny-16bit checkpoints/tiny-int8 --text models/tiny-mixtral/heldout.jsonl
    """
    from mixtral_build.compare import compare_checkpoints, read_texts  # transformers takes seconds to import

    with _progress_bar("comparing") as progress:
        result = compare_checkpoints(a, b, read_texts(text), progress)
    _report(asdict(result), as_json)


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {part}" for name, part in value.items())
        click.echo(f"{key}: {value:.6g}" if isinstance(value, float) else f"{key}: {value}")


@contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (done, total). Without a terminal nothing but the label is shown."""
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        cli.main(arguments, prog_name="mixtral-build", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except MixtralError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except OSError as error:
        click.echo(f"error: {error.filename or 'input or output'}: {error.strerror}", err=True)
        return 1
    return 0


def main() -> None:
    sys.exit(run())
