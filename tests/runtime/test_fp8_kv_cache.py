"""The FP8 KV cache: what comes back is what E4M3 keeps in units of the layer's scale, one byte a value."""

from dataclasses import replace

import e4m3
import numpy as np
import pytest
import torch
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache, cache_dtype, plan_blocks

CPU = torch.device("cpu")
SCALES = torch.tensor([1.0, 2.5])


@pytest.fixture
def config(checkpoint: Checkpoint) -> CheckpointConfig:
    return replace(checkpoint.config, quantization=replace(checkpoint.config.quantization, kv_cache_quant_algo="FP8"))


def random_like(config: CheckpointConfig, tokens: int, seed: int) -> Tensor:
    shape = (tokens, config.num_key_value_heads, config.head_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100


@pytest.mark.parametrize("layer", [0, 1])
def test_a_read_gives_what_e4m3_keeps(config: CheckpointConfig, layer: int) -> None:
    cache = KvCache(config, 3, CPU, torch.float32, SCALES)
    tokens = BLOCK_SIZE + 5
    keys, values = random_like(config, tokens, 0), random_like(config, tokens, 1)
    keys[0, 0, 0] = 1e6  # saturates
    slots = torch.tensor([(2 if i < BLOCK_SIZE else 0) * BLOCK_SIZE + i % BLOCK_SIZE for i in range(tokens)])
    cache.write(layer, slots, keys, values)
    for found, written in zip(cache.read(layer, torch.tensor([2, 0]), tokens), (keys, values), strict=True):
        expected = e4m3.round_trip(written.numpy(), SCALES[layer].item())
        assert np.array_equal(found.transpose(0, 1)[:tokens].numpy(), expected)
        assert found[:, tokens:].eq(0).all()


def test_a_read_is_in_the_activations_dtype(config: CheckpointConfig) -> None:
    cache = KvCache(config, 1, CPU, torch.bfloat16, SCALES)
    assert {part.dtype for part in cache.read(0, torch.tensor([0]), 0)} == {torch.bfloat16}


def test_the_plan_counts_one_byte_a_value(config: CheckpointConfig, checkpoint: Checkpoint) -> None:
    assert cache_dtype(config, torch.float32).itemsize == 1
    assert cache_dtype(checkpoint.config, torch.float32).itemsize == 4
    limits = EngineLimits(10**6, 127, 128, 64)  # more than have room
    many = plan_blocks(config, limits, None, CPU, cache_dtype(config, torch.float32))
    few = plan_blocks(checkpoint.config, limits, None, CPU, torch.float32)
    assert many == pytest.approx(4 * few, rel=0.3)  # the free memory changes meanwhile


def test_another_cache_algorithm_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="kv_cache_quant_algo is INT8, only FP8 or none is supported"):
        replace(checkpoint.config, quantization=replace(checkpoint.config.quantization, kv_cache_quant_algo="INT8"))
