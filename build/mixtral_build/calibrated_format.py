"""The format that a model is quantised with, with what calibration has to find out about the model first."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtral_build.awq_search import ScaleSearch, search_scales
from mixtral_build.calibrate import Calibration, calibrate, unseen_experts
from mixtral_build.layer_source import HfLayerSource
from mixtral_build.layerwise import Samples
from mixtral_build.staging import Notify, Staging
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import Format
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.formats.fp8 import Fp8
from mixtral_runtime.tensor_names import checkpoint_format

DEFAULT_SAMPLES = 512
DEFAULT_TOKENS = 512
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What the model reads: `samples` windows of at most `tokens` tokens. data: None for the text that ships with
    this."""

    data: Path | None = None
    samples: int = DEFAULT_SAMPLES
    tokens: int = DEFAULT_TOKENS


@dataclass(frozen=True, slots=True)
class CalibratedFormat:
    """kv_scales: of an FP8 KV cache, by tensor name. report: of the calibration, None where none was needed."""

    weight_format: Format
    kv_scales: Mapping[str, Tensor] = field(default_factory=dict)
    report: dict[str, Any] | None = None


def read_samples(config: CheckpointConfig, model_dir: Path, options: CalibrationOptions) -> Samples | None:
    """What the model must read before it can be quantised as the config says, None when nothing.

    Raises MixtralError when the tokenizer or the calibration data cannot be read.
    """
    if not isinstance(checkpoint_format(config), Fp8 | Awq) and config.quantization.kv_cache_quant_algo is None:
        return None
    from mixtral_build.calibration_data import calibration_samples  # transformers takes seconds to import
    from mixtral_runtime.tokenizer import load_tokenizer

    tokens = min(options.tokens, config.max_position_embeddings)
    return calibration_samples(load_tokenizer(model_dir), options.data, samples=options.samples, tokens=tokens)


def samples_digest(samples: Samples | None) -> str | None:
    """SHA-256 of the tokens."""
    return None if samples is None else hashlib.sha256(repr(samples.token_ids).encode()).hexdigest()


def calibrated_format(
    config: CheckpointConfig,
    model_dir: Path,
    samples: Samples | None,
    staging: Staging,
    notify: Notify | None = None,
    progress: Progress | None = None,
) -> CalibratedFormat:
    """config: of the checkpoint. samples: from `read_samples`. What a killed run calibrated is taken from `staging`.

    progress: called with the layers done and their total.
    """
    weight_format = checkpoint_format(config)
    if samples is None:
        return CalibratedFormat(weight_format)
    needed = "awq" if isinstance(weight_format, Awq) else "calibration"
    if notify is not None and staging.load_artifact(needed) is None:
        notify(f"calibrating: {len(samples)} samples, {samples.tokens} tokens")
    report: dict[str, Any] = {"samples": len(samples), "tokens": samples.tokens}
    if isinstance(weight_format, Awq):
        search = _search(config, model_dir, samples, staging, progress)
        weight_format = Awq(search.prequant_scales())
        report |= {"unseen_experts": unseen_experts(search.expert_tokens), "error_ratio": search.error_ratio()}
        if config.quantization.kv_cache_quant_algo is None:
            return CalibratedFormat(weight_format, report=report)
    calibration = _calibration(config, model_dir, samples, staging, progress)
    unseen = calibration.unseen_experts()
    if unseen and notify is not None:
        notify(
            f"calibration sent no token to {len(unseen)} experts, which take the largest scale of the others: "
            f"{', '.join(unseen)}; more --calib-data reaches them"
        )
    if isinstance(weight_format, Fp8):
        weight_format = Fp8(calibration.activation_scales())
    quantized_cache = config.quantization.kv_cache_quant_algo is not None
    report |= {"unseen_experts": unseen}
    return CalibratedFormat(weight_format, calibration.kv_scales() if quantized_cache else {}, report)


def calibration_source(config: CheckpointConfig, model_dir: Path) -> HfLayerSource:
    """The unquantised model with the routing width of `config`, on a GPU where there is one.

    In the model's own dtype, except that a CPU multiplies float16 in float32: it has no instructions for it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    slow = device == "cpu" and config.torch_dtype == torch.float16
    dtype = torch.float32 if slow else config.torch_dtype
    return HfLayerSource(model_dir, device, dtype, experts_per_token=config.moe.top_k)


def _search(
    config: CheckpointConfig, model_dir: Path, samples: Samples, staging: Staging, progress: Progress | None
) -> ScaleSearch:
    if (tensors := staging.load_artifact("awq")) is not None:
        return ScaleSearch.from_tensors(tensors)
    search = search_scales(calibration_source(config, model_dir), samples, config.torch_dtype, progress)
    staging.save_artifact("awq", search.to_tensors())
    return search


def _calibration(
    config: CheckpointConfig, model_dir: Path, samples: Samples, staging: Staging, progress: Progress | None
) -> Calibration:
    if (tensors := staging.load_artifact("calibration")) is not None:
        return Calibration.from_tensors(tensors)
    calibration = calibrate(calibration_source(config, model_dir), samples, progress)
    staging.save_artifact("calibration", calibration.to_tensors())
    return calibration
