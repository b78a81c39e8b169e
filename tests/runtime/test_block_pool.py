"""Blocks of the KV cache: references are counted, and what is published is found until its place is needed."""

import pytest

from mixtral_runtime.pytorch.block_pool import BlockPool, block_key

A, B, C = (block_key(b"", [number] * 32) for number in range(3))


def test_a_block_is_free_again_when_its_last_user_has_given_it_back() -> None:
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.publish(block, A)
    pool.share(block)
    pool.release([block])
    assert (pool.free, pool.references(block)) == (1, 1)
    pool.release([block])
    assert pool.free == 2


def test_a_free_block_is_found_and_taken_into_use_again() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], A)
    pool.release(blocks)
    assert pool.find(A) == blocks[0]
    pool.share(blocks[0])
    assert pool.free == 0


def test_blank_blocks_are_taken_first_then_the_longest_free() -> None:
    pool = BlockPool(3)
    a, b, blank = pool.allocate(3)
    pool.publish(a, A)
    pool.publish(b, B)
    for block in (b, a, blank):
        pool.release([block])
    assert pool.allocate(2) == [blank, b]
    assert pool.find(A) == a
    assert pool.find(B) is None


def test_of_one_sequence_the_last_block_goes_first() -> None:
    """Without the blocks before it, a block is of no use to anybody."""
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, key in zip(blocks, (A, B, C), strict=True):
        pool.publish(block, key)
    pool.release(blocks)
    assert pool.allocate(2) == blocks[:0:-1]
    assert pool.find(A) == blocks[0]


def test_of_equal_blocks_the_first_is_kept() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, A)
    pool.publish(second, A)
    assert pool.find(A) == first
    pool.release([second])
    assert pool.allocate(1) == [second]
    assert pool.find(A) == first


def test_without_reuse_nothing_is_found() -> None:
    pool = BlockPool(1, reuse=False)
    [block] = pool.allocate(1)
    pool.publish(block, A)
    assert pool.find(A) is None


def test_a_key_covers_all_tokens_up_to_its_blocks_end() -> None:
    tokens = list(range(32))
    assert block_key(A, tokens) == block_key(A, list(tokens))
    assert len({block_key(A, tokens), block_key(B, tokens), block_key(b"", tokens), block_key(A, tokens[::-1])}) == 4


def test_mistakes_of_ours_are_noticed() -> None:
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    with pytest.raises(AssertionError, match="no content to share"):
        pool.share(block)
    pool.release([block])
    with pytest.raises(AssertionError, match="released and nobody uses it"):
        pool.release([block])
    with pytest.raises(AssertionError, match="3 blocks asked, 2 are free"):
        pool.allocate(3)
