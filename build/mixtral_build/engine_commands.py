"""The commands that make an engine of a checkpoint: `engine` and `convert`."""

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from mixtral_build.console import AS_JSON, DIRECTORY, POSITIVE, notify, progress_bar, report
from mixtral_build.convert import convert_checkpoint
from mixtral_build.engine import build_pytorch_engine, engine_summary
from mixtral_build.limits import PRESETS, LimitOverrides
from mixtral_build.runtime_choice import RUNTIMES, choose_runtime, describe_choice
from mixtral_build.trtllm_command import warnings
from mixtral_build.trtllm_engine import build_trtllm_engine, plan_trtllm_build
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import LAYOUTS
from mixtral_runtime.devices import DEVICE_NAMES, find_device, fp8_conversion
from mixtral_runtime.errors import InvalidArgument

GPU = click.option("--gpu", type=click.Choice(DEVICE_NAMES), default="auto", help="What it will run on.")
GPU_MEMORY = click.option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory to count on, in 10^9 bytes.  [default: the GPU's, or this machine's for cpu]",
)


@click.command()
@click.argument("checkpoint_dir", type=DIRECTORY)
@click.argument("engine_dir", type=DIRECTORY)
@click.option("--runtime", type=click.Choice(RUNTIMES), default="auto", help="What will run the engine.")
@GPU
@GPU_MEMORY
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="latency",
    help="What the default limits aim at: small batches and short steps, or large ones.",
)
@click.option(
    "--max-batch-size", type=POSITIVE, help="Sequences decoded at once.  [default: what preset and memory give]"
)
@click.option("--max-input-len", type=POSITIVE, help="Tokens of a prompt.  [default: max-seq-len - 1]")
@click.option(
    "--max-seq-len",
    type=POSITIVE,
    help="Tokens of prompt and output.  [default: the model's limit, 4096 at most on CPU, and what fits]",
)
@click.option("--max-num-tokens", type=POSITIVE, help="Tokens of one step.  [default: what the preset gives]")
@click.option("--max-queue-size", type=click.IntRange(min=0), help="Waiting requests.  [default: 256]")
@click.option("--kv-cache-tokens", type=POSITIVE, help="Size of the KV cache.  [default: planned when loading]")
@click.option(
    "--timing-cache",
    type=DIRECTORY,
    help="model.cache of an earlier TensorRT-LLM engine for the same GPU and version, to build faster.",
)
@click.option("--replace", "replace_existing", is_flag=True, help="Replace the engine that ENGINE_DIR already holds.")
@click.option("--dry-run", is_flag=True, help="Print the commands that would build a TensorRT-LLM engine, do nothing.")
@AS_JSON
def engine(
    checkpoint_dir: Path,
    engine_dir: Path,
    runtime: str,
    gpu: str,
    gpu_memory: float | None,
    preset: str,
    kv_cache_tokens: int | None,
    timing_cache: Path | None,
    replace_existing: bool,
    dry_run: bool,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Build the new directory ENGINE_DIR, ready to serve, from the checkpoint in CHECKPOINT_DIR.

    \b
    mixtral-build engine checkpoints/tiny-int8 engines/tiny-int8 --runtime pytorch
    mixtral-build engine checkpoints/int8 engines/int8 --runtime tensorrt-llm --gpu a100 --preset throughput --dry-run
    """
    device = find_device(gpu, gpu_memory)
    config = Checkpoint.open(checkpoint_dir).config
    chosen_runtime, chosen_gpu = choose_runtime(runtime, config, device), describe_choice(gpu, device)
    notify(f"runtime {chosen_runtime.value}: {chosen_runtime.reason}")
    notify(f"gpu {chosen_gpu.value}: {chosen_gpu.reason}")
    overrides = LimitOverrides(**limits)
    if chosen_runtime.value == "pytorch":
        if dry_run:
            raise InvalidArgument("--dry-run prints the TensorRT-LLM command, the runtime is pytorch")
        if config.uses_fp8 and (remark := fp8_conversion(device)):
            notify(f"warning: {remark}")
        manifest = build_pytorch_engine(
            checkpoint_dir,
            engine_dir,
            device=device,
            limits=overrides,
            preset=preset,
            kv_cache_tokens=kv_cache_tokens,
            replace_existing=replace_existing,
            notify=notify,
        )
    else:
        for warning in warnings(config, device):
            notify(f"warning: {warning}")
        build = plan_trtllm_build(
            checkpoint_dir, device=device, limits=overrides, preset=preset, timing_cache=timing_cache
        )
        if dry_run:
            commands = build.commands(engine_dir)
            if as_json:
                report({"commands": commands, "limits": asdict(build.limits)}, as_json)
            else:
                click.echo("\n".join(shlex.join(command) for command in commands))
            return
        manifest = build_trtllm_engine(
            build, engine_dir, kv_cache_tokens=kv_cache_tokens, replace_existing=replace_existing, notify=notify
        )
    report(engine_summary(engine_dir, manifest, chosen_runtime, chosen_gpu), as_json)


@click.command()
@click.argument("checkpoint_dir", type=DIRECTORY)
@click.argument("target_dir", type=DIRECTORY)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    required=True,
    help="plain for the PyTorch runtime, sm80 (A100) or sm90 (H100) for TensorRT-LLM.",
)
@AS_JSON
def convert(checkpoint_dir: Path, target_dir: Path, layout: str, as_json: bool) -> None:
    """Write the int8 checkpoint in CHECKPOINT_DIR to the new directory TARGET_DIR in another layout of the weights.

    \b
    mixtral-build convert checkpoints/int8 checkpoints/int8-sm80 --layout sm80
    """
    with progress_bar("converting") as progress:
        summary = convert_checkpoint(checkpoint_dir, target_dir, layout, notify=notify, progress=progress)
    report(asdict(summary), as_json)
