"""`mixtral-build`: quantise a model, build an engine directory, check and compare them.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from mixtral_build.calibrated_format import DEFAULT_SAMPLES, DEFAULT_TOKENS, CalibrationOptions
from mixtral_build.console import AS_JSON, DIRECTORY, POSITIVE, progress_bar, report
from mixtral_build.engine_commands import convert, engine
from mixtral_build.plan_command import plan
from mixtral_build.quality_commands import compare, evaluate
from mixtral_build.quantize import quantize_model
from mixtral_build.verify import verify_directory
from mixtral_runtime.config import DTYPES, LAYOUTS
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.plan import KV_CACHE_DTYPES


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
@click.option(
    "--kv-cache", type=click.Choice(KV_CACHE_DTYPES), help="What the KV cache holds.  [default: fp8 with fp8 weights]"
)
@click.option(
    "--tp-size", type=POSITIVE, default=1, help="GPUs that share the model, each with its own file of weights."
)
@click.option("--experts-per-token", type=POSITIVE, help="How many experts a token uses.  [default: the model's]")
@click.option(
    "--calib-data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='What the model reads for calibration: text, .jsonl with a "text" per line, or .parquet with a column text.'
    "  [default: a small text of our own]",
)
@click.option("--calib-samples", type=POSITIVE, default=DEFAULT_SAMPLES, help="How many pieces of it at most.")
@click.option("--calib-tokens", type=POSITIVE, default=DEFAULT_TOKENS, help="Tokens of a piece.")
@AS_JSON
def quantize(
    model_dir: Path,
    checkpoint_dir: Path,
    precision: str,
    layout: str | None,
    dtype: str | None,
    kv_cache: str | None,
    tp_size: int,
    experts_per_token: int | None,
    calib_data: Path | None,
    calib_samples: int,
    calib_tokens: int,
    as_json: bool,
) -> None:
    """Quantise the Hugging Face model in MODEL_DIR into the new directory CHECKPOINT_DIR.

    A model that AutoAWQ (awq), compressed-tensors or AutoFP8 (fp8) has quantised keeps its own values.
    Interrupted or killed, the same command continues where it was.

    \b
    mixtral-build quantize models/tiny-mixtral checkpoints/tiny-int8 --precision int8
    """
    with progress_bar("quantising") as progress:
        summary = quantize_model(
            model_dir,
            checkpoint_dir,
            precision,
            layout=layout,
            dtype=dtype,
            kv_cache=kv_cache,
            experts_per_token=experts_per_token,
            calibration=CalibrationOptions(calib_data, calib_samples, calib_tokens),
            tp_size=tp_size,
            notify=lambda sentence: click.echo(sentence, err=True),
            progress=progress,
        )
    report(asdict(summary), as_json)


@cli.command()
@click.argument("directory", type=DIRECTORY)
@AS_JSON
def verify(directory: Path, as_json: bool) -> None:
    """Check the structure of a checkpoint or engine in DIRECTORY, and its contents against their SHA-256."""
    with progress_bar("checking") as progress:
        summary = verify_directory(directory, progress)
    report(asdict(summary), as_json)


cli.add_command(convert)
cli.add_command(engine)
cli.add_command(plan)
cli.add_command(evaluate)
cli.add_command(compare)


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
