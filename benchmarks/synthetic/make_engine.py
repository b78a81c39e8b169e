"""Writes an engine directory for the synthetic engine: known tokens on a clock, no model.

\b
Example: python benchmarks/synthetic/make_engine.py engines/synthetic --set step_s=0.01
         MIXTRAL_PLUGIN_PATH=$PWD/benchmarks/synthetic python scripts/serve.py --engine engines/synthetic
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from synthetic_settings import SETTINGS_NAME, SyntheticSettings

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, MixtralError
from mixtral_runtime.manifest import Manifest, ModelInfo, Returns, describe_files

PLUGIN_FOLDER = Path(__file__).resolve().parent  # for MIXTRAL_PLUGIN_PATH
MODEL = PLUGIN_FOLDER.parents[1] / "models" / "tiny-mixtral"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LIMITS = EngineLimits(
    max_batch_size=64, max_input_len=16384, max_seq_len=32768, max_num_tokens=8192, max_queue_size=256
)


def make_engine(engine_dir: Path, settings: Mapping[str, Any], limits: EngineLimits = LIMITS) -> None:
    """settings: those of `SyntheticSettings`, as in JSON. An engine that is there is replaced.

    Raises InvalidArgument for settings that are not sound.
    """
    SyntheticSettings.of(dict(settings))
    tokenizer = engine_dir / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(MODEL / name, tokenizer / name)
    (engine_dir / SETTINGS_NAME).write_text(json.dumps(dict(settings), indent=2) + "\n", encoding="utf-8")
    config = CheckpointConfig.from_hf(json.loads((MODEL / "config.json").read_text()), "float16")
    Manifest(
        runtime="synthetic_engine:open",
        versions={},
        gpu="cpu",
        precision="synthetic",
        dtype="float16",
        kv_cache_dtype="float16",
        limits=limits,
        model=ModelInfo.of(config),
        returns=Returns(log_probs=True, prompt_log_probs=True, context_logits=False, generation_logits=False),
        source=None,
        # Not the settings: they may be changed by hand between two starts.
        files=describe_files(engine_dir, [f"tokenizer/{name}" for name in TOKENIZER_FILES]),
    ).write(engine_dir)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError as error:
        raise InvalidArgument(f"--set {text} is not KEY=VALUE with a JSON value") from error


@click.command(help=__doc__)
@click.argument("engine_dir", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting, its value as JSON.")
@click.option("--max-batch-size", default=LIMITS.max_batch_size, show_default=True, help="Requests running at once.")
@click.option("--max-queue-size", default=LIMITS.max_queue_size, show_default=True, help="Requests waiting.")
@click.option("--max-num-tokens", default=LIMITS.max_num_tokens, show_default=True, help="Tokens of one step.")
def main(
    engine_dir: Path, settings: tuple[str, ...], max_batch_size: int, max_queue_size: int, max_num_tokens: int
) -> None:
    limits = EngineLimits(max_batch_size, LIMITS.max_input_len, LIMITS.max_seq_len, max_num_tokens, max_queue_size)
    try:
        make_engine(engine_dir, dict(_setting(text) for text in settings), limits)
    except MixtralError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    click.echo(engine_dir)


if __name__ == "__main__":
    main()
