"""Whole models of every precision through the GPU kernels, in the interpreter: the logits are plain PyTorch's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.quantize import quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.kernels.availability import VARIABLE, gpu_kernels
from mixtral_runtime.kernels.gpu.experts import GpuExperts
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.weights import WeightLoader

PROMPT = [11, 402]


@contextmanager
def gpu_kernels_are(value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, value)
        gpu_kernels.cache_clear()
        yield
    gpu_kernels.cache_clear()


@pytest.fixture(scope="module", params=["16bit", "int8", "fp8", "awq"])
def checkpoint(
    request: pytest.FixtureRequest, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    directory = tmp_path_factory.mktemp(request.param) / "checkpoint"
    quantize_model(demo_model, directory, request.param, calibration=CalibrationOptions(samples=4))
    return Checkpoint.open(directory)


def logits(checkpoint: Checkpoint, kernels: str, dtype: torch.dtype, tokens: list[int]) -> Tensor:
    with gpu_kernels_are(kernels):
        return MixtralModel.load(checkpoint, "cpu", dtype).forward_logits(tokens)


def test_logits_are_close_to_those_without_the_kernels(checkpoint: Checkpoint) -> None:
    """Of a prompt; and of one token, for which there are other kernels."""
    algorithm = checkpoint.config.quantization.quant_algo
    for tokens in (PROMPT, PROMPT[:1]) if algorithm == "W8A16" else (PROMPT,):
        expected = logits(checkpoint, "none", torch.float16, tokens)
        found = logits(checkpoint, "interpret", torch.float16, tokens)
        # FP8: the last bit of an activation may decide to which E4M3 it is rounded, a 16th up or down.
        limit = 0.05 if algorithm == "FP8" else 4e-3
        assert (found - expected).norm() < limit * expected.norm()


def test_they_serve_16_bit_activations_and_no_others(checkpoint: Checkpoint) -> None:
    with gpu_kernels_are("interpret"):
        for dtype, expected in ((torch.bfloat16, True), (torch.float16, True), (torch.float32, False)):
            weights = WeightLoader(checkpoint, torch.device("cpu"), dtype)
            experts = weights.experts("transformer.layers.0.mlp")
            assert isinstance(experts._fused, GpuExperts) == expected
            assert ("Gpu" in type(weights.linear("transformer.layers.0.attention.qkv")).__name__) == expected
