"""Limits of an engine: what the user gave, and defaults that the memory plan allows."""

from dataclasses import replace

import pytest

from mixtral_build.fit import alternatives
from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device, find_device
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import plan_memory, with_precision

NOTHING = LimitOverrides()
CPU = find_device("cpu", memory_gb=128)
A100, H100, H200 = (find_device(name) for name in ("a100", "h100", "h200"))


@pytest.fixture
def int8(mixtral_8x7b: CheckpointConfig) -> CheckpointConfig:
    return with_precision(mixtral_8x7b, "int8")


def test_defaults_on_a_cpu(int8: CheckpointConfig) -> None:
    assert plan_limits(int8, CPU, NOTHING) == EngineLimits(16, 4095, 4096, 512, 256)
    short = replace(int8, max_position_embeddings=1000)
    assert plan_limits(short, CPU, NOTHING) == EngineLimits(16, 999, 1000, 512, 256)


@pytest.mark.parametrize(
    ("device", "precision", "preset", "batch", "tokens"),
    [
        (A100, "int8", "latency", 16, 2048),
        (A100, "int8", "throughput", 128, 8192),
        (H100, "fp8", "throughput", 256, 8192),
        (H200, "fp8", "throughput", 512, 8192),
        (A100, "awq", "throughput", 256, 8192),
    ],
)
def test_presets_on_a_gpu(
    mixtral_8x7b: CheckpointConfig, device: Device, precision: str, preset: str, batch: int, tokens: int
) -> None:
    limits = plan_limits(with_precision(mixtral_8x7b, precision), device, NOTHING, preset)
    assert limits == EngineLimits(batch, 32767, 32768, tokens, 256)


def test_a_batch_holds_sequences_of_a_typical_length(int8: CheckpointConfig) -> None:
    limits = plan_limits(int8, A100, NOTHING, "throughput")
    plan = plan_memory(int8, A100, limits.max_num_tokens, limits.max_batch_size)
    assert plan.largest_batch(1024) >= limits.max_batch_size


def test_little_memory_shortens_sequences_and_batches(int8: CheckpointConfig) -> None:
    limits = plan_limits(int8, find_device("a100", memory_gb=50.0), NOTHING)
    assert limits.max_seq_len < 32768
    assert limits.max_batch_size < 16
    assert limits.max_input_len == limits.max_seq_len - 1


def test_given_limits_are_taken(int8: CheckpointConfig) -> None:
    given = LimitOverrides(
        max_batch_size=600, max_input_len=100, max_seq_len=32768, max_num_tokens=700, max_queue_size=0
    )
    assert plan_limits(int8, CPU, given) == EngineLimits(600, 100, 32768, 700, 0)
    assert plan_limits(int8, CPU, LimitOverrides(max_batch_size=600)).max_num_tokens == 600


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (LimitOverrides(max_seq_len=32769), "max_seq_len is 32769, the model's limit is 32768"),
        (LimitOverrides(max_input_len=4096), "max_input_len is 4096, it must be below max_seq_len, which is 4096"),
        (LimitOverrides(max_num_tokens=8), "max_num_tokens is 8, it must be at least max_batch_size, which is 16"),
    ],
)
def test_limits_that_contradict_each_other_are_refused_with_both_values(
    int8: CheckpointConfig, given: LimitOverrides, sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        plan_limits(int8, CPU, given)


def test_a_sequence_longer_than_the_kv_cache_is_refused(int8: CheckpointConfig) -> None:
    with pytest.raises(
        InvalidArgument, match=r"max_seq_len is 32768, the KV cache that fits on a100 .* has \d+ tokens"
    ):
        plan_limits(int8, find_device("a100", memory_gb=52.0), LimitOverrides(max_seq_len=32768))


def test_what_does_not_fit_is_refused_with_the_nearest_that_does(mixtral_8x7b: CheckpointConfig) -> None:
    with pytest.raises(InvalidArgument) as error:
        plan_limits(mixtral_8x7b, A100, NOTHING)
    assert str(error.value) == (
        "16bit weights of 93.4 GB and 2.5 GB of workspace leave no room for a KV cache in the 80 GB of a100; "
        "what fits: --precision int8 on a100, --precision 16bit on h200, --precision 16bit on 2 x a100 (--tp-size 2)"
    )


def test_a_device_too_small_for_everything_is_told_so(mixtral_8x7b: CheckpointConfig) -> None:
    small = find_device("a100", memory_gb=8)
    with pytest.raises(InvalidArgument, match=r"in the 8 GB of a100; what fits: --precision 16bit on h200$"):
        plan_limits(mixtral_8x7b, small, NOTHING)


def test_a_card_without_fp8_is_no_alternative(mixtral_8x7b: CheckpointConfig) -> None:
    found = alternatives(with_precision(mixtral_8x7b, "fp8"), find_device("cpu", memory_gb=32))
    assert list(found) == ["--precision awq on cpu", "--precision fp8 on h100"]


def test_weights_larger_than_a_cpu_s_memory_get_an_engine_all_the_same(mixtral_8x7b: CheckpointConfig) -> None:
    limits = plan_limits(with_precision(mixtral_8x7b, "int8"), find_device("cpu", memory_gb=24), NOTHING)
    assert limits.max_seq_len == 4096
    assert limits.max_batch_size == 16
