"""From a Hugging Face model to a checkpoint in one pass, one matrix of one expert in memory at a time."""

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtral_build.calibrated_format import (
    CalibratedFormat,
    CalibrationOptions,
    calibrated_format,
    read_samples,
    samples_digest,
)
from mixtral_build.checkpoint_writer import CheckpointWriter
from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_build.import_quantized import QuantizedModel, kv_cache_scales, open_quantized
from mixtral_build.rank_tensors import quantize_for_ranks, split_for_ranks
from mixtral_build.read_ahead import ReadAhead
from mixtral_build.staging import Notify, staged
from mixtral_build.version import project_version
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import Mapping
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats import Format, TensorSpec, get_format
from mixtral_runtime.formats.int8 import Int8
from mixtral_runtime.plan import with_precision
from mixtral_runtime.tensor_names import Weight, expected_specs, weights


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """What was written. kv_cache: "fp8" or a dtype. tensors: in each rank's file. bytes: of the files of weights
    together. source_bytes: of the model's. calibration: samples, tokens, and the experts that saw none of them, for awq
    also the outputs' mean squared error as a share of plain rounding's; None where it was not needed."""

    checkpoint: str
    precision: str
    layout: str | None
    dtype: str
    kv_cache: str
    experts_per_token: int
    tp_size: int
    tensors: int
    source_bytes: int
    bytes: int
    calibration: dict[str, Any] | None


def quantize_model(
    model_dir: Path,
    checkpoint_dir: Path,
    precision: str,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    kv_cache: str | None = None,
    experts_per_token: int | None = None,
    calibration: CalibrationOptions | None = None,
    tp_size: int = 1,
    notify: Notify | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> QuantizeSummary:
    """Writes a checkpoint directory that appears only when it is complete.

    precision and layout: as in `mixtral_runtime.formats.get_format`. dtype: of everything that is not quantised and of
    the scales, None for the model's own. kv_cache: one of `mixtral_runtime.plan.KV_CACHE_DTYPES`, None for what goes
    with the precision. experts_per_token: the routing width, None for the model's own. calibration: what the model
    reads where scales depend on activations, unless it comes quantised in this precision already and keeps its values;
    None for the text that ships with this. tp_size: GPUs that share the model; each gets its own file of weights.
    notify: told in a sentence when the work of a killed run is continued.
    progress: called with the parameters done and their total.
    Raises MixtralError for whatever is wrong with the model, the target or the choice.
    """
    source = HfCheckpoint.open(model_dir)
    config = _config(source, precision, layout, dtype, kv_cache, experts_per_token, tp_size)
    imported = open_quantized(source, precision)
    if imported is not None:
        config = _with_format(config, imported.format)
    specs = expected_specs(config)
    samples = None
    if imported is None:
        for part in (part for weight in weights(config) for parts in weight.parts for part in parts):
            source.check(part)  # now, not after hours
        samples = read_samples(config, model_dir, calibration or CalibrationOptions())
    tokenizer_files = source.tokenizer_files()
    key = {
        "version": project_version(),
        "config": config.to_json(),
        "model": source.identity(),
        "samples": samples_digest(samples),
    }
    with staged(checkpoint_dir, key, notify) as staging:
        staging.check_space(config.mapping.world_size * sum(spec.nbytes for spec in specs))
        _copy_files(tokenizer_files, staging.directory / TOKENIZER_NAME)
        (staging.directory / CONFIG_NAME).write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
        if imported is None:
            chosen = calibrated_format(config, model_dir, samples, staging, notify, progress)
        else:
            chosen = CalibratedFormat(imported.format, kv_cache_scales(source, config))
        with (
            CheckpointWriter(staging, config, notify) as writer,
            ReadAhead(source, _pieces(config, writer.finished) if imported is None else ()) as ahead,
        ):
            total = sum(map(_parameters, weights(config)))
            done = 0
            for weight in weights(config):
                if weight.name in writer.finished:
                    done += _parameters(weight)
                    continue
                for parameters in _write_weight(source, weight, chosen, imported, config, writer):
                    ahead.advance()
                    done += parameters
                    if progress is not None:
                        progress(done, total)
                writer.finish(weight.name)
            writer.write_checksums()
        size = sum(path.stat().st_size for path in staging.directory.glob("*.safetensors"))
    return QuantizeSummary(
        str(checkpoint_dir),
        chosen.weight_format.name,
        config.layout,
        config.dtype,
        config.kv_cache_dtype,
        config.moe.top_k,
        tp_size,
        len(specs),
        source.nbytes(),
        size,
        chosen.report,
    )


def _config(
    source: HfCheckpoint,
    precision: str,
    layout: str | None,
    dtype: str | None,
    kv_cache: str | None,
    experts_per_token: int | None,
    tp_size: int,
) -> CheckpointConfig:
    try:
        config = replace(CheckpointConfig.from_hf(source.config, dtype), mapping=Mapping.tensor_parallel(tp_size))
    except CheckpointError as error:
        raise CheckpointError(f"{source.directory / CONFIG_NAME}: {error}") from error
    if experts_per_token is not None:
        if not 1 <= experts_per_token <= config.moe.num_experts:
            raise InvalidArgument(
                f"experts_per_token is {experts_per_token}, it must be from 1 to {config.moe.num_experts}"
            )
        config = replace(config, moe=replace(config.moe, top_k=experts_per_token))
    config = with_precision(config, precision, kv_cache)
    return replace(config, layout=get_format(precision, layout).layout, source=source.fingerprint())


def _with_format(config: CheckpointConfig, weight_format: Format) -> CheckpointConfig:
    return replace(config, quantization=replace(config.quantization, **weight_format.quantization))


def _pieces(config: CheckpointConfig, finished: Collection[str]) -> Iterator[tuple[TensorSpec, ...]]:
    """What `_write_weight` takes from the source, one piece after the other."""
    return (part for weight in weights(config) if weight.name not in finished for part in weight.parts)


def _write_weight(
    source: HfCheckpoint,
    weight: Weight,
    chosen: CalibratedFormat,
    imported: QuantizedModel | None,
    config: CheckpointConfig,
    writer: CheckpointWriter,
) -> Iterator[int]:
    """One expert at a time; yields the parameters of each."""
    weight_format, tp_size = chosen.weight_format, config.mapping.tp_size
    for expert, specs in enumerate(weight.parts):
        if weight.quantized and imported is not None:
            ranks = split_for_ranks(weight, imported.tensors(weight, expert), weight_format, tp_size)
        else:
            parts = [source.tensor(spec).to(weight.dtype) for spec in specs]
            ranks = _finite(
                quantize_for_ranks(weight, parts, weight_format, tp_size), weight, weight_format, parts, specs
            )
        for rank, tensors in ranks:
            for name, tensor in tensors.items():
                writer.write(name, tensor, expert, rank)
        yield sum(math.prod(spec.shape) for spec in specs)
    constants = weight_format.constants(weight.name) if weight.quantized else {}
    constants |= {spec.name: chosen.kv_scales[spec.name] for spec in weight.kv_scales}
    for rank, tensors in split_for_ranks(weight, constants, weight_format, tp_size):
        for name, tensor in tensors.items():
            writer.write(name, tensor, rank=rank)


def _finite(
    ranks: Iterable[tuple[int, dict[str, Tensor]]],
    weight: Weight,
    weight_format: Format,
    parts: Sequence[Tensor],
    specs: Sequence[TensorSpec],
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The same ranks. Raises CheckpointError for the first part that has an infinity or no number."""
    # Int8's scales are of the largest value of each row, so they show it without another pass over the weight.
    in_scales = weight.quantized and isinstance(weight_format, Int8)
    if not in_scales:
        _check_finite(parts, specs)
    for rank, tensors in ranks:
        if in_scales and not all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
            _check_finite(parts, specs)
        yield rank, tensors


def _check_finite(parts: Sequence[Tensor], specs: Sequence[TensorSpec]) -> None:
    for part, spec in zip(parts, specs, strict=True):
        if not torch.stack(torch.aminmax(part)).isfinite().all():
            dtype = str(part.dtype).removeprefix("torch.")
            raise CheckpointError(f"{spec.name} has values that are infinite or not a number in {dtype}")


def _parameters(weight: Weight) -> int:
    return sum(math.prod(part.shape) for parts in weight.parts for part in parts)


def _copy_files(files: list[Path], directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for path in files:
        shutil.copy(path, directory / path.name)
