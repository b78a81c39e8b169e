"""The command `plan`."""

from pathlib import Path

import click

from mixtral_build.console import AS_JSON, DIRECTORY, POSITIVE, report
from mixtral_build.engine_commands import GPU, GPU_MEMORY
from mixtral_build.plan import make_plan, plan_table
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.plan import KV_CACHE_DTYPES


@click.command()
@click.argument("model", type=DIRECTORY)
@click.option("--precision", type=click.Choice(list(FORMATS)), default="int8", help="How the weights are stored.")
@GPU
@GPU_MEMORY
@click.option(
    "--kv-cache", type=click.Choice(KV_CACHE_DTYPES), help="What the KV cache holds.  [default: fp8 with fp8 weights]"
)
@click.option("--context", type=POSITIVE, help="Tokens that a sequence must be able to have.")
@click.option("--batch", type=POSITIVE, help="Sequences that must fit at once.")
@click.option(
    "--calibration-tokens", type=POSITIVE, help="Tokens of the calibration text.  [default: of the text that ships]"
)
@click.option(
    "--work-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="Where checkpoints will be written; the speed of its disk is measured.",
)
@AS_JSON
def plan(
    model: Path,
    precision: str,
    gpu: str,
    gpu_memory: float | None,
    kv_cache: str | None,
    context: int | None,
    batch: int | None,
    calibration_tokens: int | None,
    work_dir: Path,
    as_json: bool,
) -> None:
    """Tell what MODEL, a Hugging Face model's directory or its config.json alone, will take before anything runs.

    Memory of the engine and what fits beside the weights; disk, memory and time of each step of the conversion. This
    machine's speed is measured for that, in about two seconds. Exit code 1 when the engine does not fit. Weights
    larger than a CPU's memory do: they are read from the disk, and a warning says how slow that is.

    \b
    mixtral-build plan models/tiny-mixtral --precision int8 --gpu cpu
    mixtral-build plan config.json --precision fp8 --gpu h100 --context 32768 --batch 8
    """
    found = make_plan(
        model,
        precision,
        find_device(gpu, gpu_memory),
        kv_cache=kv_cache,
        context=context,
        batch=batch,
        calibration_tokens=calibration_tokens,
        work_dir=work_dir,
    )
    if as_json:
        report(found.to_json(), as_json)
    else:
        click.echo("\n".join(plan_table(found)))
    for remark in (found.paged, found.converted):
        if remark is not None:
            click.echo(f"warning: {remark}", err=True)
    if found.misfit is not None:
        raise InvalidArgument(found.misfit)
