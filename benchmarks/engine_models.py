"""The models of `engine.py`, prepared for every engine that is measured, kept for the next run."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from demo_server import MODEL, ROOT, call
from peers import gguf_model

from mixtral_runtime.checkpoint import read_config
from mixtral_runtime.config import CheckpointConfig

GENERATE = (sys.executable, ROOT / "scripts" / "make_synthetic_checkpoint.py")
# Mixtral's proportions at a quarter of its widths: 0.8 billion parameters.
RANDOM_SHAPE = ("--layers", "8", "--narrower", "4")
# Scales decide quality, not speed, and a random model has none.
CALIBRATION = ("--calib-samples", "2", "--calib-tokens", "128")
MAX_BATCH, MAX_TOKENS = 16, 2304  # the longest prompt, its output and a margin
MODELS = ("random", "demo")


@dataclass(frozen=True, slots=True)
class Prepared:
    """hugging_face: the model's directory. engines: by precision."""

    name: str
    hugging_face: Path
    gguf: Path
    engines: dict[str, Path]
    config: CheckpointConfig

    @property
    def max_tokens(self) -> int:
        return min(MAX_TOKENS, self.config.max_position_embeddings)


def prepare(name: str, precisions: tuple[str, ...], folder: Path) -> Prepared:
    """name: of MODELS. What is in `folder` from an earlier run is taken as it is, but for the engine directories, which
    cost little; delete it after a change of the formats."""
    folder.mkdir(parents=True, exist_ok=True)
    model = MODEL if name == "demo" else folder / name
    if not model.exists():
        click.echo("making a random model of 0.8 billion parameters", err=True)
        subprocess.run([*GENERATE, model, *RANDOM_SHAPE], check=True, stdout=subprocess.DEVNULL)
    config = CheckpointConfig.from_hf(read_config(model))
    gguf = folder / f"{name}.gguf"
    if not gguf.exists():
        click.echo(f"{name}: writing GGUF", err=True)
        partial = gguf.with_suffix(".partial")
        gguf_model.write(model, partial)
        partial.rename(gguf)
    length = str(min(MAX_TOKENS, config.max_position_embeddings))
    engines = {}
    for precision in precisions:
        checkpoint, engine = folder / f"{name}-{precision}-checkpoint", folder / f"{name}-{precision}"
        if not checkpoint.exists():
            click.echo(f"{name}: quantising to {precision}", err=True)
            calibration = CALIBRATION if precision in ("fp8", "awq") else ()
            call("mixtral_build", "quantize", model, checkpoint, "--precision", precision, *calibration)
        shutil.rmtree(engine, ignore_errors=True)
        limits = ("--max-batch-size", str(MAX_BATCH), "--max-seq-len", length)
        call("mixtral_build", "engine", checkpoint, engine, "--runtime", "pytorch", "--gpu", "cpu", *limits)
        engines[precision] = engine
    return Prepared(name, model, gguf, engines, config)
