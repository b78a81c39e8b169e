"""In-flight batching: who runs in a step, who waits, and that nothing leaks, starves or hangs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_runtime.engine import EngineLimits, Request
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, BlockPool
from mixtral_runtime.pytorch.scheduler import Scheduler, Work
from mixtral_runtime.pytorch.sequence import Sequence


def scheduler(
    blocks: int = 64, max_batch_size: int = 4, max_num_tokens: int = 32, max_queue_size: int = 100
) -> Scheduler:
    limits = EngineLimits(max_batch_size, 1000, 1000, max_num_tokens, max_queue_size)
    return Scheduler(limits, BlockPool(blocks))


def sequence(number: int, prompt_len: int, max_tokens: int = 8, priority: float = 0.5) -> Sequence:
    return Sequence(number, Request([1] * prompt_len, max_tokens, priority=priority), None)


def advance(scheduler: Scheduler) -> list[Work]:
    """One step without a model: every token that can be sampled is a 2."""
    work = scheduler.schedule()
    for one in work:
        completes = one.completes
        one.sequence.computed += one.length
        if completes:
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


def test_a_sequence_waits_until_its_longest_output_has_blocks() -> None:
    s = scheduler(blocks=3)
    s.add(sequence(1, BLOCK_SIZE, max_tokens=BLOCK_SIZE + 1))  # two blocks: the last token is never cached
    s.add(sequence(2, BLOCK_SIZE, max_tokens=2))  # two blocks
    while s.running or s.waiting:
        ran = lengths(advance(s))
        assert len(ran) == 1, "both fit only if the reservation is forgotten"


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


ARRIVAL = st.tuples(st.just("arrive"), st.integers(1, 200), st.integers(1, 60), st.floats(0, 1))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 1000), st.just(0), st.just(0.0))
STEP = st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0.0))


@settings(deadline=None)
@given(
    st.lists(ARRIVAL | CANCEL | STEP, max_size=60),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(0, 8),
)
def test_whatever_arrives_and_is_cancelled_all_end_and_no_block_leaks(
    operations: list[tuple[str, int, int, float]], max_batch_size: int, extra_tokens: int, extra_blocks: int
) -> None:
    budget = max_batch_size + extra_tokens
    s = scheduler(blocks_for(260) + extra_blocks, max_batch_size, budget, max_queue_size=8)

    def checked_step() -> None:
        decoding = {one.id for one in s.running if one.decoding}
        work = advance(s)
        assert sum(one.length for one in work) <= budget
        assert all(one.length >= 1 for one in work)
        assert len({one.sequence.id for one in work}) == len(work) <= max_batch_size
        assert decoding <= lengths(work).keys(), "a decoding sequence was left out of a step"
        owned = [block for one in s.running for block in one.block_ids]
        assert len(set(owned)) == len(owned) == s.pool.total - s.pool.free

    for number, (kind, a, b, priority) in enumerate(operations):
        if kind == "arrive" and len(s.waiting) < 8:
            s.add(sequence(number, a, b, priority))
        elif kind == "cancel" and s.live:
            s.remove(s.live[a % len(s.live)])
        elif kind == "step":
            checked_step()
    work_left = sum(one.pending + one.request.max_tokens for one in s.live)
    for _ in range(work_left):  # every step computes at least one token
        checked_step()
    assert not s.live
    assert s.pool.free == s.pool.total
