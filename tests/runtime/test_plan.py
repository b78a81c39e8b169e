"""The memory plan: Mixtral-8x7B's published figures, and that every size is that of the real thing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import Mapping, MoeConfig
from mixtral_runtime.devices import CARDS, GB, available_memory, check_fp8, find_device
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.plan import (
    TOKENS_PER_BLOCK,
    decode_floor_s,
    model_size,
    paging,
    plan_memory,
    prefill_floor_s,
    prefill_flop,
    with_precision,
)
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.tensor_names import expected_specs

KIB = 1024


@pytest.mark.parametrize(
    ("precision", "weights_gb", "active_gb"),
    [("16bit", 93.4, 25.5), ("int8", 47.0, 12.9), ("fp8", 47.0, 12.9), ("awq", 24.5, 6.8)],
)
def test_weights(mixtral_8x7b: CheckpointConfig, precision: str, weights_gb: float, active_gb: float) -> None:
    size = model_size(with_precision(mixtral_8x7b, precision))
    assert size.parameters / 1e9 == pytest.approx(46.7, abs=0.05)
    assert size.active_parameters / 1e9 == pytest.approx(12.75, abs=0.05)
    assert size.weights / GB == pytest.approx(weights_gb, abs=0.05)
    assert size.active_weights / GB == pytest.approx(active_gb, abs=0.05)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bit_weights_without_embedding_and_head(mixtral_8x7b: CheckpointConfig, precision: str) -> None:
    vocabulary = 2 * mixtral_8x7b.vocab_size * mixtral_8x7b.hidden_size * 2  # embedding and lm_head in 16 bit
    assert vocabulary / GB == pytest.approx(0.5, abs=0.05)
    size = model_size(with_precision(mixtral_8x7b, precision))
    assert (size.weights - vocabulary) / GB == pytest.approx(46.5, abs=0.1)


@pytest.mark.parametrize(("kv_cache", "kib"), [("16bit", 128), ("fp8", 64)])
def test_kv_cache_per_token(mixtral_8x7b: CheckpointConfig, kv_cache: str, kib: int) -> None:
    size = model_size(with_precision(mixtral_8x7b, "fp8", kv_cache))
    assert size.kv_bytes_per_token == kib * KIB
    assert 32 * KIB * size.kv_bytes_per_token == {128: 4, 64: 2}[kib] * 2**30  # 32k tokens are 4 or 2 GiB


@pytest.mark.parametrize(
    ("card", "precision", "tokens"), [("a100", "int8", (190_000, 200_000)), ("h100", "fp8", (380_000, 400_000))]
)
def test_tokens_that_fit_on_an_80_gb_card(
    mixtral_8x7b: CheckpointConfig, card: str, precision: str, tokens: tuple[int, int]
) -> None:
    plan = plan_memory(with_precision(mixtral_8x7b, precision), CARDS[card], max_num_tokens=8192, max_batch_size=64)
    assert 2 * GB <= plan.workspace <= 5 * GB
    assert tokens[0] <= plan.kv_tokens <= tokens[1]
    assert plan.kv_tokens * plan.kv_bytes_per_token / GB == pytest.approx(25, abs=1.5)


def test_16_bit_weights_need_two_80_gb_cards_or_one_of_141(mixtral_8x7b: CheckpointConfig) -> None:
    assert plan_memory(mixtral_8x7b, CARDS["a100"], 2048, 1).kv_tokens == 0
    assert plan_memory(mixtral_8x7b, CARDS["h200"], 2048, 1).kv_tokens > 0
    halved = replace(mixtral_8x7b, mapping=Mapping.tensor_parallel(2))
    assert plan_memory(halved, CARDS["a100"], 2048, 1).kv_tokens > 0


@pytest.mark.parametrize(
    ("card", "milliseconds", "tokens_per_s"), [("a100", 6.4, 155), ("h100", 3.9, 260), ("h200", 3.0, 330)]
)
def test_decode_floor(mixtral_8x7b: CheckpointConfig, card: str, milliseconds: float, tokens_per_s: float) -> None:
    seconds = decode_floor_s(model_size(with_precision(mixtral_8x7b, "int8")), CARDS[card])
    assert seconds is not None
    assert seconds * 1e3 == pytest.approx(milliseconds, abs=0.06)
    assert 1 / seconds == pytest.approx(tokens_per_s, rel=0.005)


def test_prefill_floor(mixtral_8x7b: CheckpointConfig) -> None:
    config = with_precision(mixtral_8x7b, "int8")
    size = model_size(config)
    assert prefill_flop(config, size, 512) / 1e12 == pytest.approx(13.2, abs=0.05)
    floors = {name: prefill_floor_s(config, size, card, 512) for name, card in CARDS.items()}
    assert floors["a100"] is not None
    assert max(floors["a100"]) * 1e3 == pytest.approx(42, abs=0.5)
    # Published as 17 to 25 ms on a Hopper card: between perfect overlap of arithmetic and reading, and none.
    for name in ("h100", "h200"):
        parts = floors[name]
        assert parts is not None
        assert max(parts) * 1e3 < 17
        assert sum(parts) * 1e3 > 24


def test_what_is_not_known_of_a_device_is_not_made_up(mixtral_8x7b: CheckpointConfig) -> None:
    cpu, size = find_device("cpu"), model_size(mixtral_8x7b)
    assert decode_floor_s(size, cpu) is None
    assert prefill_floor_s(mixtral_8x7b, size, cpu, 512) is None


small_configs = st.builds(
    CheckpointConfig,
    dtype=st.sampled_from(["float16", "bfloat16"]),
    vocab_size=st.integers(1, 500).map(lambda n: 64 * n),
    hidden_size=st.sampled_from([256, 512]),
    intermediate_size=st.sampled_from([256, 768]),
    num_hidden_layers=st.integers(1, 3),
    num_attention_heads=st.just(8),
    num_key_value_heads=st.sampled_from([2, 4]),
    head_size=st.sampled_from([32, 64]),
    norm_epsilon=st.just(1e-5),
    rotary_base=st.just(1e6),
    max_position_embeddings=st.just(512),
    moe=st.builds(MoeConfig, num_experts=st.integers(2, 8), top_k=st.integers(1, 2)),
)


@given(small_configs, st.sampled_from(list(FORMATS)), st.sampled_from([1, 2]))
def test_sizes_are_those_of_the_checkpoints_tensors(config: CheckpointConfig, precision: str, tp_size: int) -> None:
    config = with_precision(replace(config, mapping=Mapping.tensor_parallel(tp_size)), precision)
    size = model_size(config)
    specs = expected_specs(config)
    assert size.weights == sum(spec.nbytes for spec in specs)
    embedding = next(spec for spec in specs if "vocab_embedding" in spec.name)
    assert size.active_weights < size.weights - embedding.nbytes or config.moe.num_experts == config.moe.top_k


@given(small_configs, st.sampled_from(["16bit", "fp8"]))
def test_the_kv_cache_takes_what_is_planned(config: CheckpointConfig, kv_cache: str) -> None:
    config = with_precision(config, "16bit", kv_cache)
    scales = torch.ones(config.num_hidden_layers) if kv_cache == "fp8" else None
    cache = KvCache(config, 3, torch.device("cpu"), config.torch_dtype, scales)
    storage = cache.storage
    assert storage.numel() * storage.itemsize == 3 * TOKENS_PER_BLOCK * model_size(config).kv_bytes_per_token


def test_mapped_weights_larger_than_the_memory_are_read_from_the_disk(mixtral_8x7b: CheckpointConfig) -> None:
    """The less memory, the more of a token's own weights; never more than these."""
    config = with_precision(mixtral_8x7b, "int8")
    size, found = model_size(config), []
    for memory_gb in (2, 24, 54, 55, 200):  # 47 GB, an eighth of the memory for the KV cache, workspace: above 54
        plan = plan_memory(config, find_device("cpu", memory_gb), max_num_tokens=512, max_batch_size=16)
        assert plan.kv_tokens > 0
        found.append(paging(size, plan))
    small, medium, large = (one for one in found[:3] if one is not None)
    assert size.active_weights > small[0] > medium[0] > large[0] > 0
    assert small[1] == medium[1] == large[1] == size.active_weights
    assert found[3:] == [None, None]


@given(small_configs, st.integers(1, 64), st.integers(1, 2000))
def test_what_is_said_to_fit_does_and_a_little_more_does_not(
    config: CheckpointConfig, batch: int, context: int
) -> None:
    plan = plan_memory(config, find_device("a100", memory_gb=2.5), max_num_tokens=256, max_batch_size=batch)
    assert plan.weights + plan.workspace + plan.kv_tokens * plan.kv_bytes_per_token <= plan.memory
    blocks = plan.kv_tokens // TOKENS_PER_BLOCK

    def needed(sequences: int, tokens: int) -> int:
        return sequences * -(-tokens // TOKENS_PER_BLOCK)

    assert needed(plan.largest_batch(context), context) <= blocks < needed(plan.largest_batch(context) + 1, context)
    longest = plan.largest_context(batch)
    assert needed(batch, longest) <= blocks < needed(batch, longest + 1)


def test_gpus_have_names_architectures_and_memory() -> None:
    assert [find_device(name).architecture for name in ("cpu", "a100", "h100", "h200")] == [
        "cpu",
        "sm80",
        "sm90",
        "sm90",
    ]
    assert [find_device(name).memory for name in ("a100", "h100", "h200")] == [80 * GB, 80 * GB, 141 * GB]
    assert find_device("h100", memory_gb=94.0).memory == 94 * GB
    with pytest.raises(InvalidArgument, match="the GPU is b200, it must be one of auto, cpu, a100, h100, h200"):
        find_device("b200")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_is_this_machine() -> None:
    assert find_device("auto") == find_device("cpu")
    assert 0 < available_memory() <= find_device("auto").memory


def test_tensorrt_llm_is_refused_fp8_where_there_is_no_such_arithmetic() -> None:
    with pytest.raises(InvalidArgument, match="a100 is SM80, FP8 needs SM89 or later"):
        check_fp8(find_device("a100"))
    for name in ("cpu", "h100", "h200"):
        check_fp8(find_device(name))
