"""Int8 checkpoints from one arrangement of the weights to another, one expert's matrix in memory at a time."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mixtral_build.checkpoint_writer import CheckpointWriter
from mixtral_build.staging import Notify, staged
from mixtral_build.version import project_version
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME, Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats.int8 import Int8
from mixtral_runtime.tensor_names import checkpoint_format, expected_specs, weight_specs, weights


@dataclass(frozen=True, slots=True)
class ConvertSummary:
    """bytes: of the weights' files."""

    checkpoint: str
    source_layout: str
    layout: str
    bytes: int


def convert_checkpoint(
    checkpoint_dir: Path,
    target_dir: Path,
    layout: str,
    *,
    notify: Notify | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ConvertSummary:
    """Writes a checkpoint directory in another layout; converted back it is the same, byte for byte.

    progress: told the bytes written and their total. notify: as in `staged`; a killed run is continued.
    Raises MixtralError when the checkpoint is not complete, is not int8, has that layout already or shapes that it
    cannot take, or when the target exists.
    """
    checkpoint = Checkpoint.open(checkpoint_dir)
    checkpoint.validate()
    source_layout = checkpoint.config.layout
    if source_layout is None:
        precision = checkpoint_format(checkpoint.config).name
        raise InvalidArgument(f"the precision of {checkpoint_dir} is {precision}, only int8 has layouts")
    if source_layout == layout:
        raise InvalidArgument(f"{checkpoint_dir} is in the layout {layout} already")
    config = replace(checkpoint.config, layout=layout)
    total = config.mapping.world_size * sum(spec.nbytes for spec in expected_specs(config))
    key = {"version": project_version(), "config": config.to_json(), "checkpoint": checkpoint_identity(checkpoint_dir)}
    with staged(target_dir, key, notify) as staging:
        staging.check_space(total)
        if (tokenizer := checkpoint_dir / TOKENIZER_NAME).is_dir():
            shutil.copytree(tokenizer, staging.directory / TOKENIZER_NAME, dirs_exist_ok=True)
        (staging.directory / CONFIG_NAME).write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
        with CheckpointWriter(staging, config, notify) as writer:
            convert_weights(checkpoint, config, writer, progress)
            writer.write_checksums()
    return ConvertSummary(str(target_dir), source_layout, layout, total)


def convert_weights(
    checkpoint: Checkpoint,
    config: CheckpointConfig,
    writer: CheckpointWriter,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Those of an int8 checkpoint in the layout of `config`, except what the writer has already.

    progress: told the bytes written and their total.
    """
    target, ranks = checkpoint_format(config), range(config.mapping.world_size)
    source_layout = checkpoint.config.layout
    assert isinstance(target, Int8), target
    assert source_layout is not None, checkpoint.directory
    total, done = len(ranks) * sum(spec.nbytes for spec in expected_specs(config)), 0
    for weight in weights(config):
        specs = weight_specs(weight, target, len(ranks))
        if weight.name not in writer.finished:
            for rank in ranks:
                for spec in specs:
                    for start, part in _converted(checkpoint.tensor(spec.name, rank), target, source_layout):
                        writer.write(spec.name, part, start, rank)
            writer.finish(weight.name)
        done += len(ranks) * sum(spec.nbytes for spec in specs)
        if progress is not None:
            progress(done, total)


def _converted(tensor: Tensor, target: Int8, source_layout: str) -> Iterator[tuple[int, Tensor]]:
    """The slices to write and where each begins. Whatever is not int8 has no layout."""
    if tensor.dtype != torch.int8:
        yield 0, tensor
    elif tensor.ndim == 2:
        yield 0, target.convert(tensor, source_layout)
    else:
        for expert in range(tensor.shape[0]):
            yield expert, target.convert(tensor[expert : expert + 1], source_layout)


def checkpoint_identity(checkpoint_dir: Path) -> dict[str, list[int]]:
    """By file, what changes when somebody writes to it."""
    files = sorted(checkpoint_dir.glob("*.safetensors"))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
