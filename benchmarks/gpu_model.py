"""Mixtral-8x7B's shape with random weights, made on the device in their final format: no file, no 16-bit original.

`RandomCheckpoint` stands where a checkpoint does, so that a model is put together by the runtime's own loader, over the
same Linear and FusedExperts objects as a real one.
"""

import math
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import MoeConfig
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.formats.fp8 import E4M3, E4M3_MAX
from mixtral_runtime.plan import with_precision
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tensor_names import KV_RECIPROCAL_SCALE, KV_SCALE, expected_specs

MIXTRAL_8X7B = CheckpointConfig(
    dtype="bfloat16",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_size=128,
    norm_epsilon=1e-5,
    rotary_base=1e6,
    max_position_embeddings=32768,
    moe=MoeConfig(8, 2),
)
# Every proportion that a kernel could stumble over, in a size that a CPU computes at once.
MINIATURE = replace(
    MIXTRAL_8X7B,
    vocab_size=320,
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_size=64,
    max_position_embeddings=1024,
)
GAIN = 1.25  # standard deviation of a matrix's output, for an input whose is 1
GAINS = {"lm_head.weight": 4.0}  # the likeliest token stands out, as in a trained model
EMBEDDING = "transformer.vocab_embedding.weight"
STORED_SPREAD = {"W8A16": 32.0, "FP8": 64.0, "W4A16_AWQ": 4.6}  # standard deviations of the stored values
ACTIVATION_SCALE = 12.0 / E4M3_MAX  # activations have a standard deviation near 1, and few exceed 10
CONSTANTS = {
    "activation_scaling_factor": ACTIVATION_SCALE,
    KV_SCALE: ACTIVATION_SCALE,
    KV_RECIPROCAL_SCALE: 1 / ACTIVATION_SCALE,
}
RANDOM_VALUES = 1 << 26  # drawn at once


@dataclass(frozen=True)
class RandomCheckpoint:
    """A Checkpoint whose tensors are drawn when they are asked for: the same for the same seed and device.

    Weights are normal (4-bit ones uniform) with a standard deviation of 1.25 / sqrt(in), scales differ by up to a
    factor of three, norms are near 1.
    """

    config: CheckpointConfig
    device: torch.device
    seed: int = 0
    directory: Path = Path("random")

    def validate(self) -> None:
        """There is nothing that could be missing."""

    def tensor(self, name: str) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(self.seed + zlib.crc32(name.encode()))
        return _draw(self._specs[name], self.config, generator)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in expected_specs(self.config)}


def config_of(shape: CheckpointConfig, precision: str, kv_cache: str | None = None) -> CheckpointConfig:
    """shape: MIXTRAL_8X7B or MINIATURE. precision, kv_cache: as `--precision` and `--kv-cache` say them."""
    return with_precision(shape, precision, kv_cache)


def random_model(
    config: CheckpointConfig, device: torch.device, made_on: torch.device | None = None, seed: int = 0
) -> MixtralModel:
    """made_on: where the weights are drawn, None for `device`; the same there are the same everywhere."""
    checkpoint = RandomCheckpoint(config, made_on or device, seed)
    return MixtralModel.load(cast(Checkpoint, checkpoint), device)


def _draw(spec: TensorSpec, config: CheckpointConfig, generator: torch.Generator) -> Tensor:
    suffix, algorithm = spec.name.rsplit(".", 1)[1], config.quantization.quant_algo or ""
    if suffix == "weight":
        return _weight(spec, algorithm, generator)
    if suffix in CONSTANTS:
        return torch.full(spec.shape, CONSTANTS[suffix], device=generator.device)
    if suffix == "prequant_scaling_factor":
        return _uniform(spec, 0.7, 1.4, generator)
    # What is left are weights' scales.
    in_features = config.intermediate_size if ".mlp.proj." in spec.name else config.hidden_size
    middle = GAIN / math.sqrt(in_features) / STORED_SPREAD[algorithm]
    return _uniform(spec, 0.5 * middle, 1.5 * middle, generator)


def _weight(spec: TensorSpec, algorithm: str, generator: torch.Generator) -> Tensor:
    made = torch.empty(spec.shape, dtype=spec.dtype, device=generator.device)
    if made.dim() == 1:  # a norm
        return made.uniform_(0.8, 1.2, generator=generator)
    for part in torch.split(made.view(-1), RANDOM_VALUES):
        if spec.dtype is torch.int8 and algorithm == "W4A16_AWQ":  # two values in a byte
            part.random_(-128, 128, generator=generator)
            continue
        drawn = torch.randn(part.shape, dtype=torch.float32, device=generator.device, generator=generator)
        if spec.dtype is torch.int8:
            part.copy_(drawn.mul_(STORED_SPREAD["W8A16"]).round_().clamp_(-128, 127))
        elif spec.dtype is E4M3:
            part.copy_(drawn.mul_(STORED_SPREAD["FP8"]).clamp_(-E4M3_MAX, E4M3_MAX))
        else:
            part.copy_(drawn.mul_(GAINS.get(spec.name, GAIN) / math.sqrt(spec.shape[-1])))
    if spec.name == EMBEDDING:
        made *= math.sqrt(spec.shape[-1])  # a residual stream with a standard deviation near 1 from the start
    return made


def _uniform(spec: TensorSpec, low: float, high: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(spec.shape, dtype=torch.float32, device=generator.device, generator=generator)
    return drawn.mul_(high - low).add_(low).to(spec.dtype)
