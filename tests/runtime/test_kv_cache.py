"""The paged KV cache: what a read gives back, and how much is planned."""

import pytest
import torch

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache, plan_blocks

CPU = torch.device("cpu")


def limits(max_seq_len: int, max_batch_size: int) -> EngineLimits:
    return EngineLimits(max_batch_size, max_seq_len - 1, max_seq_len, max_num_tokens=64)


def test_a_read_gives_what_was_written_in_the_order_of_the_block_table(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    cache = KvCache(config, 4, CPU, torch.float32)
    keys, values = torch.randn(2, 40, config.num_key_value_heads, config.head_size)
    table = torch.tensor([3, 1])
    slots = torch.tensor([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(40)])
    cache.write(1, slots, keys, values)
    read_keys, read_values = cache.read(1, table, 40)
    assert torch.equal(read_keys[:, :40], keys.transpose(0, 1))
    assert torch.equal(read_values[:, :40], values.transpose(0, 1))


def test_a_read_hides_what_the_last_owner_left_behind(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    cache = KvCache(config, 1, CPU, torch.float32)
    garbage = torch.full((BLOCK_SIZE, config.num_key_value_heads, config.head_size), float("nan"))
    cache.write(0, torch.arange(BLOCK_SIZE), garbage, garbage)
    cache.write(0, torch.arange(5), torch.ones_like(garbage[:5]), torch.ones_like(garbage[:5]))
    keys, values = cache.read(0, torch.tensor([0]), 5)
    assert keys[:, :5].eq(1).all()
    assert values[:, :5].eq(1).all()
    assert keys[:, 5:].eq(0).all()
    assert values[:, 5:].eq(0).all()


def test_by_default_a_full_batch_of_longest_sequences_fits(checkpoint: Checkpoint) -> None:
    assert plan_blocks(checkpoint.config, limits(100, 6), None, CPU, torch.float32) == 6 * blocks_for(100)


def test_kv_cache_tokens_are_taken_as_given(checkpoint: Checkpoint) -> None:
    assert plan_blocks(checkpoint.config, limits(100, 6), 300, CPU, torch.float32) == 300 // BLOCK_SIZE


def test_a_cache_too_small_for_one_sequence_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidArgument, match=r"kv_cache_tokens is 64, .*max_seq_len 100 tokens needs 128"):
        plan_blocks(checkpoint.config, limits(100, 6), 64, CPU, torch.float32)


@pytest.mark.parametrize(("max_seq_len", "kv_cache_tokens"), [(10**12, None), (100, 10**12)])
def test_more_than_the_memory_is_refused(checkpoint: Checkpoint, max_seq_len: int, kv_cache_tokens: int | None) -> None:
    with pytest.raises(InvalidArgument, match=r"needs [0-9.]+ GiB, [0-9.]+ GiB may be used on cpu"):
        plan_blocks(checkpoint.config, limits(max_seq_len, 1), kv_cache_tokens, CPU, torch.float32)
