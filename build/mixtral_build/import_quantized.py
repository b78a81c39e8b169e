"""Hugging Face models that come quantised: their own values become the checkpoint's, without a detour over 16 bits."""

from typing import Any, Protocol

import torch
from torch import Tensor

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_runtime.checkpoint import CONFIG_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_fields import section
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats import Format, TensorSpec
from mixtral_runtime.formats.fp8 import E4M3, Fp8, to_e4m3
from mixtral_runtime.formats.gptq import Gptq
from mixtral_runtime.formats.int4 import GROUP_SIZE, check_shape
from mixtral_runtime.tensor_names import Weight, weights

# Where the nibble of each of 8 consecutive columns lies in an int32 of AutoAWQ's GEMM version: it packs the columns in
# the order 0 2 4 6 1 3 5 7 from the lowest nibble on, and this is the inverse.
NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
COLUMNS = 8  # in one int32

# What each tensor of the FP8 scheme must be: E4M3 with one static scale.
STATIC_E4M3 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}


class QuantizedModel(Protocol):
    """A source whose matrices are quantised already."""

    @property
    def format(self) -> Format:
        """Of the checkpoint that it becomes; its `constants` are the model's own."""

    def tensors(self, weight: Weight, expert: int) -> dict[str, Tensor]:
        """What `format.quantize` would give for one expert of the weight, from the model's own values.

        Raises CheckpointError when a tensor is missing or wrong.
        """
        ...


def open_quantized(source: HfCheckpoint, precision: str) -> QuantizedModel | None:
    """None for a model in 16 or 32 bits. Raises InvalidArgument when the model is quantised in another way than
    `precision`, CheckpointError for a scheme that cannot be imported; both name what they found."""
    if "quantization_config" not in source.config:
        return None
    try:
        model = _open(source)
    except CheckpointError as error:
        raise CheckpointError(f"{source.directory / CONFIG_NAME}: {error}") from error
    if model.format.name != precision:
        raise InvalidArgument(
            f"precision is {precision}, but {source.directory} is quantised to {model.format.name} already; "
            f"use --precision {model.format.name}"
        )
    return model


def kv_cache_scales(source: HfCheckpoint, config: CheckpointConfig) -> dict[str, Tensor]:
    """[1] float32 by tensor name, for every layer of a checkpoint with an FP8 KV cache: the larger one of the model's
    `k_scale` and `v_scale` where it has them, and 1 at least, as in NVIDIA ModelOpt."""
    scales: dict[str, Tensor] = {}
    for layer, weight in enumerate(weight for weight in weights(config) if weight.kv_scales):
        names = {f"model.layers.{layer}.self_attn.{which}_scale" for which in "kv"} & source.names()
        scale = torch.cat([torch.ones(1), *map(source.scalar, sorted(names))]).amax(dim=0, keepdim=True)
        scales |= dict(zip((spec.name for spec in weight.kv_scales), (scale, 1 / scale), strict=True))
    return scales


def unpack_columns(packed: Tensor) -> Tensor:
    """AutoAWQ's int32 [rows, columns / 8] -> int8 [rows, columns] from 0 to 15."""
    shifts = 4 * torch.tensor(NIBBLE_OF_COLUMN, dtype=torch.int32)
    return (packed[..., None] >> shifts).bitwise_and_(15).to(torch.int8).flatten(-2)


class AutoAwqModel:
    """AutoAWQ's GEMM version: `qweight` int32 [in, out / 8], `qzeros` int32 [in / 128, out / 8] and `scales`
    [in / 128, out] for each matrix; weight = (value - zero) * scale. Its activation scales are within the weights of
    the layers before, so nothing else is stored."""

    def __init__(self, source: HfCheckpoint, scheme: dict[str, Any]) -> None:
        _expect(scheme, "quantization_config", {"bits": 4, "group_size": GROUP_SIZE, "zero_point": True})
        if (version := str(scheme.get("version", "gemm"))).lower() != "gemm":
            raise CheckpointError(f"quantization_config.version is {version}, only gemm is supported")
        self.format = Gptq()
        self._source = source

    def tensors(self, weight: Weight, expert: int) -> dict[str, Tensor]:
        pieces = [self._matrix(part) for part in weight.parts[expert]]
        values, zero_points, scales = (torch.cat(piece) for piece in zip(*pieces, strict=True))
        if weight.stacked:
            values, zero_points, scales = values[None], zero_points[None], scales[None]
        return self.format.tensors(weight.name, values, zero_points, scales)

    def _matrix(self, part: TensorSpec) -> tuple[Tensor, Tensor, Tensor]:
        """Values [out, in], zero points and scales [out, in / 128]."""
        out_features, in_features = part.shape
        check_shape(part.name, out_features, in_features)
        if out_features % COLUMNS:
            raise CheckpointError(f"{part.name} has {out_features} output features, AutoAWQ packs {COLUMNS} together")
        stem, groups, words = part.name.removesuffix("weight"), in_features // GROUP_SIZE, out_features // COLUMNS
        values = self._source.stored(TensorSpec(f"{stem}qweight", (in_features, words), torch.int32))
        zero_points = self._source.stored(TensorSpec(f"{stem}qzeros", (groups, words), torch.int32))
        scales = self._source.tensor(TensorSpec(f"{stem}scales", (groups, out_features), part.dtype)).to(part.dtype)
        if not scales.isfinite().all():
            raise CheckpointError(f"{stem}scales has values that are infinite or not a number")
        return unpack_columns(values).T, unpack_columns(zero_points).T, scales.T


class Fp8Model:
    """`weight` E4M3 [out, in], `weight_scale` and `input_scale` (one value each) for each matrix, as compressed-tensors
    and AutoFP8 write them.

    What TensorRT-LLM's loader does with them: matrices that share a scale in the checkpoint (up and gate projection;
    query, key and value) are requantised with the larger one, and the largest input scale counts for all experts.
    """

    def __init__(self, source: HfCheckpoint) -> None:
        self._source = source
        self.format = Fp8(
            {
                weight.name: torch.cat(
                    [self._scale(part, "input_scale") for parts in weight.parts for part in parts]
                ).amax(dim=0, keepdim=True)
                for weight in weights(CheckpointConfig.from_hf(source.config))
                if weight.quantized
            }
        )

    def tensors(self, weight: Weight, expert: int) -> dict[str, Tensor]:
        parts = weight.parts[expert]
        scales = torch.cat([self._scale(part, "weight_scale") for part in parts])
        shared = scales.max()
        pieces = []
        for part, scale in zip(parts, scales, strict=True):
            values = self._source.stored(TensorSpec(part.name, part.shape, E4M3))
            if values.float().isnan().any():
                raise CheckpointError(f"{part.name} has values that are not a number")
            pieces.append(values if scale == shared else to_e4m3(values.float() * scale, shared))
        matrix = torch.cat([piece.view(torch.uint8) for piece in pieces]).view(E4M3)
        scale_name = f"{weight.name.removesuffix('weight')}weights_scaling_factor"
        if weight.stacked:
            return {weight.name: matrix[None], scale_name: shared.reshape(1, 1)}
        return {weight.name: matrix, scale_name: shared.reshape(1)}

    def _scale(self, part: TensorSpec, which: str) -> Tensor:
        """[1] float32."""
        name = f"{part.name.removesuffix('weight')}{which}"
        scale = self._source.scalar(name)
        if not 0 < scale.item() < float("inf"):
            raise CheckpointError(f"{name} is {scale.item()}, it must be a number above 0")
        return scale


def _open(source: HfCheckpoint) -> QuantizedModel:
    scheme = section(source.config, "quantization_config")
    method = scheme.get("quant_method")
    if method == "awq":
        return AutoAwqModel(source, scheme)
    if method == "compressed-tensors":
        _expect(scheme, "quantization_config", {"format": "float-quantized"})
        for name in (groups := section(scheme, "config_groups")):
            for part in ("weights", "input_activations"):
                where = f"quantization_config.config_groups.{name}.{part}"
                _expect(section(section(groups, name), part), where, STATIC_E4M3)
        return Fp8Model(source)
    if method == "fp8":
        _expect(scheme, "quantization_config", {"activation_scheme": "static"})
        return Fp8Model(source)
    raise CheckpointError(
        f"quantization_config.quant_method is {method}, only awq, compressed-tensors and fp8 can be imported"
    )


def _expect(data: dict[str, Any], where: str, expected: dict[str, Any]) -> None:
    """Unlike a config's other fields these have no default that could be meant."""
    for key, value in expected.items():
        if data.get(key) != value:
            raise CheckpointError(f"{where}.{key} is {data.get(key)}, only {value} is supported")
