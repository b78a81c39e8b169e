"""In-flight batching: who runs in a step, who waits, and who gives way. For prefixes see test_prefix_reuse."""

import pytest

from mixtral_runtime.engine import EngineLimits, Request
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_runtime.pytorch.block_pool import BlockPool
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE
from mixtral_runtime.pytorch.scheduler import HEAD_START, Scheduler, Work
from mixtral_runtime.pytorch.sequence import Sequence


def scheduler(
    blocks: int = 64, max_batch_size: int = 4, max_num_tokens: int = 32, max_queue_size: int = 100
) -> Scheduler:
    limits = EngineLimits(max_batch_size, 1000, 1000, max_num_tokens, max_queue_size)
    return Scheduler(limits, BlockPool(blocks, reuse=False))


def sequence(number: int, prompt_len: int, max_tokens: int = 8, priority: float = 0.5) -> Sequence:
    return Sequence(number, Request([1] * prompt_len, max_tokens, priority=priority), None)


def advance(scheduler: Scheduler) -> list[Work]:
    """One step without a model: every token that can be sampled is a 2."""
    work = scheduler.schedule()
    for one in work:
        scheduler.launched(one)
        scheduler.collected(one)
        if one.completes:
            one.sequence.append(2, None, None)
            if one.sequence.finish_reason is not None:
                scheduler.remove(one.sequence)
    return work


def lengths(work: list[Work]) -> dict[int, int]:
    return {one.sequence.id: one.length for one in work}


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    s = scheduler(max_num_tokens=32)
    s.add(sequence(1, 70))
    assert [lengths(advance(s)) for _ in range(4)] == [{1: 32}, {1: 32}, {1: 6}, {1: 1}]


def test_decode_goes_on_while_a_long_prompt_is_prefilled() -> None:
    s = scheduler(max_num_tokens=32)
    s.add(sequence(1, 4))
    advance(s)
    s.add(sequence(2, 70))
    assert [lengths(advance(s)) for _ in range(3)] == [{1: 1, 2: 31}, {1: 1, 2: 31}, {1: 1, 2: 8}]


def test_short_prompts_share_a_step() -> None:
    s = scheduler(max_num_tokens=32)
    for number, prompt_len in ((1, 10), (2, 15), (3, 20)):
        s.add(sequence(number, prompt_len))
    assert lengths(advance(s)) == {1: 10, 2: 15, 3: 7}


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    s = scheduler(max_batch_size=1)
    for number, priority in ((1, 0.5), (2, 0.9), (3, 0.5), (4, 0.9)):
        s.add(sequence(number, 4, max_tokens=1, priority=priority))
    assert [list(lengths(advance(s))) for _ in range(4)] == [[2], [4], [1], [3]]


def test_nobody_is_overtaken_by_more_than_the_head_start() -> None:
    """One at a time, and whenever one ends two of the highest priority arrive: the queue never gets shorter."""
    s = scheduler(max_batch_size=1, max_queue_size=10**6)
    s.add(sequence(1, 4, max_tokens=1, priority=0.0))
    number = 1
    for _ in range(HEAD_START - 1):
        for _ in range(2):
            number += 1
            s.add(sequence(number, 4, max_tokens=1, priority=1.0))
        assert list(lengths(advance(s))) != [1]
    assert list(lengths(advance(s))) == [1]


def test_a_new_prompt_of_higher_priority_goes_before_one_that_is_being_read() -> None:
    s = scheduler(max_num_tokens=32)
    s.add(sequence(1, 70))
    advance(s)
    s.add(sequence(2, 20, priority=1.0))
    assert lengths(advance(s)) == {2: 20, 1: 12}


def test_a_sequence_waits_until_the_blocks_for_its_prompt_are_free() -> None:
    s = scheduler(blocks=4)
    s.add(sequence(1, 3 * BLOCK_SIZE - 9, max_tokens=2))
    s.add(sequence(2, BLOCK_SIZE + 1, max_tokens=2))
    ran = [list(lengths(advance(s))) for _ in range(7)]
    assert ran == [[1], [1], [1], [1], [2], [2], [2]]


def test_an_admission_leaves_a_block_for_each_that_runs() -> None:
    """Otherwise the new one would have to give way as soon as another's block is full."""
    s = scheduler(blocks=4)
    s.add(sequence(1, 4, max_tokens=10))
    advance(s)
    s.add(sequence(2, 2 * BLOCK_SIZE + 1))
    assert list(lengths(advance(s))) == [1]
    s.remove(s.waiting[0])
    s.add(sequence(3, 2 * BLOCK_SIZE))
    assert list(lengths(advance(s))) == [1, 3]


def test_the_last_in_rank_gives_way_when_no_block_is_free() -> None:
    """Two prompts of a block each in a cache of three: the second sequence that needs another block finds none."""
    s = scheduler(blocks=3, max_num_tokens=64)
    first, second = (sequence(number, BLOCK_SIZE - 1, max_tokens=BLOCK_SIZE + 2) for number in (1, 2))
    s.add(first)
    s.add(second)
    while list(lengths(advance(s))) == [1, 2]:
        assert s.preemptions == 0
    assert s.preemptions == 1
    assert s.running == [first]
    assert (s.waiting, second.block_ids, second.computed) == ([second], [], 0)
    output = second.tokens.copy()
    while first.finish_reason is None:
        assert list(lengths(advance(s))) == [1]
    assert lengths(advance(s)) == {2: len(output)}, "prompt and output are computed anew"
    assert second.tokens == [*output, 2], "and the next token follows"
    while s.running:
        advance(s)
    assert s.pool.free == s.pool.total


def test_priority_decides_who_gives_way() -> None:
    s = scheduler(blocks=3, max_num_tokens=64)
    for number, priority in ((1, 0.1), (2, 0.9)):
        s.add(sequence(number, BLOCK_SIZE - 1, max_tokens=2 * BLOCK_SIZE, priority=priority))
    while s.preemptions == 0:
        advance(s)
    assert [one.id for one in s.running] == [2]


def test_who_gave_way_does_not_count_against_the_queues_limit_and_keeps_its_place() -> None:
    s = scheduler(blocks=3, max_num_tokens=64, max_queue_size=1)
    s.add(sequence(1, BLOCK_SIZE - 1, max_tokens=2 * BLOCK_SIZE))
    advance(s)
    s.add(sequence(2, BLOCK_SIZE - 1, max_tokens=2 * BLOCK_SIZE))
    advance(s)
    s.add(sequence(3, 4))
    while s.preemptions == 0:
        advance(s)
    assert [one.id for one in s.waiting] == [2, 3]


def test_a_short_request_does_not_overtake_a_long_one_that_waits_for_blocks() -> None:
    s = scheduler(blocks=3)
    s.add(sequence(1, 2 * BLOCK_SIZE, max_tokens=1))
    s.add(sequence(2, 2 * BLOCK_SIZE, max_tokens=1))
    s.add(sequence(3, 4, max_tokens=1))
    advance(s)
    assert [waiting.id for waiting in s.waiting] == [2, 3]


def test_a_full_queue_refuses_with_its_limit() -> None:
    s = scheduler(max_queue_size=2)
    s.add(sequence(1, 4))
    s.add(sequence(2, 4))
    with pytest.raises(Unavailable, match="the queue is full: 2 requests wait, the limit is 2"):
        s.add(sequence(3, 4))


def test_limits_under_which_a_batch_could_not_decode_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_num_tokens is 3, it must be at least max_batch_size, which is 4"):
        scheduler(max_num_tokens=3)
