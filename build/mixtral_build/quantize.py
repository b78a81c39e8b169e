"""From a Hugging Face model to a checkpoint in one pass, one matrix of one expert in memory at a time."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_build.staging import staged_directory
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import QuantConfig
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.formats import Format, get_format
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import Weight, expected_specs, weights


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """What was written; bytes are those of the weights' file."""

    checkpoint: str
    precision: str
    layout: str | None
    dtype: str
    tensors: int
    source_bytes: int
    bytes: int


def quantize_model(
    model_dir: Path,
    checkpoint_dir: Path,
    precision: str,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> QuantizeSummary:
    """Writes a checkpoint directory that appears only when it is complete.

    precision and layout: as in `mixtral_runtime.formats.get_format`. dtype: of everything that is not quantised and of
    the scales, None for the model's own. progress: called with the parameters done and their total.
    Raises MixtralError for whatever is wrong with the model, the target or the choice.
    """
    source = HfCheckpoint.open(model_dir)
    weight_format = get_format(precision, layout)
    config = _config(source, weight_format, dtype)
    specs = expected_specs(config)
    tokenizer_files = source.tokenizer_files()
    with staged_directory(checkpoint_dir) as partial:
        _copy_files(tokenizer_files, partial / TOKENIZER_NAME)
        with SafetensorsWriter(partial / WEIGHTS_NAME, specs) as writer:
            total = sum(_parameters(weight) for weight in weights(config))
            done, source_bytes = 0, 0
            for weight, start, rows, read in _slices(source, config):
                tensors = weight_format.quantize(weight.name, rows) if weight.quantized else {weight.name: rows}
                for name, tensor in tensors.items():
                    writer.write(name, tensor, start)
                done, source_bytes = done + rows.numel(), source_bytes + read
                if progress is not None:
                    progress(done, total)
        (partial / CONFIG_NAME).write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
        size = (partial / WEIGHTS_NAME).stat().st_size
    return QuantizeSummary(
        str(checkpoint_dir), weight_format.name, weight_format.layout, config.dtype, len(specs), source_bytes, size
    )


def _config(source: HfCheckpoint, weight_format: Format, dtype: str | None) -> CheckpointConfig:
    try:
        config = CheckpointConfig.from_hf(source.config, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{source.directory / CONFIG_NAME}: {error}") from error
    quantization = QuantConfig(**weight_format.quantization)
    return replace(config, quantization=quantization, layout=weight_format.layout, source=source.fingerprint())


def _slices(source: HfCheckpoint, config: CheckpointConfig) -> Iterator[tuple[Weight, int, Tensor, int]]:
    """Each weight, its experts one by one: (weight, index of the first slice, values, bytes read)."""
    for weight in weights(config):
        for expert, parts in enumerate(weight.parts):
            tensors = [source.tensor(part) for part in parts]
            rows = torch.cat([tensor.to(weight.dtype) for tensor in tensors]) if len(tensors) > 1 else tensors[0]
            rows = rows.to(weight.dtype)
            if not torch.stack(torch.aminmax(rows)).isfinite().all():
                raise CheckpointError(f"{parts[0].name} has values that are infinite or not a number in {config.dtype}")
            read = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
            yield weight, expert, rows[None] if weight.stacked else rows, read


def _parameters(weight: Weight) -> int:
    return torch.Size(weight.shape).numel()


def _copy_files(files: list[Path], directory: Path) -> None:
    directory.mkdir()
    for path in files:
        shutil.copy(path, directory / path.name)
