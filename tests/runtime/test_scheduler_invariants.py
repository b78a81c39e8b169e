"""Whatever arrives, is cancelled and runs out: no block is lost or written by two, every request ends, none starves.

The scheduler is driven without a model. What its blocks would hold is written down instead: the tokens of each place,
so that a block that is reused with another content, or overwritten while somebody reads it, is seen at once.
"""

from collections.abc import Callable
from itertools import accumulate, count

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mixtral_runtime.engine import EngineLimits, Request
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.block_pool import BlockPool
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE
from mixtral_runtime.pytorch.scheduler import Scheduler, Work
from mixtral_runtime.pytorch.sequence import Sequence

LONGEST = 190  # tokens of prompt and output
QUEUE = 8


def output_token(number: int, index: int) -> int:
    """What the model gives as token `index` of the output of request `number`."""
    return 1000 * number + index


class Serving(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)

    @initialize(
        max_batch_size=st.integers(1, 6),
        extra_tokens=st.integers(0, 60),
        extra_blocks=st.integers(0, 4),
        reuse=st.booleans(),
        launch_ahead=st.booleans(),
    )
    def start(self, max_batch_size: int, extra_tokens: int, extra_blocks: int, reuse: bool, launch_ahead: bool) -> None:
        """launch_ahead: a step is scheduled before the tokens of the last one are known, as on a GPU."""
        self.launch_ahead = launch_ahead
        self.flying: list[Work] = []
        self.budget = max_batch_size + extra_tokens
        limits = EngineLimits(max_batch_size, LONGEST, LONGEST, self.budget, QUEUE)
        self.pool = BlockPool(blocks_for(LONGEST) + extra_blocks, reuse=reuse)
        self.scheduler = Scheduler(limits, self.pool)
        self.cells = [
            [0] * BLOCK_SIZE for _ in range(self.pool.total)
        ]  # for each place, all tokens up to its own, hashed
        self.live: list[Sequence] = []

    @rule(
        prefix=st.sampled_from((0, 5, 32, 70)),
        rest=st.integers(1, 30),
        max_tokens=st.sampled_from((1, 10, 90)),
        priority=st.sampled_from((0.0, 0.5, 1.0)),
        log_probs=st.booleans(),
        times=st.integers(1, 3),
    )
    def arrive(self, prefix: int, rest: int, max_tokens: int, priority: float, log_probs: bool, times: int) -> None:
        """Prompts with equal beginnings, some of which need every token's logits."""
        for _ in range(min(times, QUEUE - len(self.scheduler.waiting))):
            number = next(self.numbers)
            prompt = [3] * prefix + [number] * rest
            request = Request(prompt, max_tokens, priority=priority, return_prompt_log_probs=log_probs)
            self.live.append(Sequence(number, request, None))
            self.scheduler.add(self.live[-1])

    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        if self.live:
            self.scheduler.remove(self.live.pop(which % len(self.live)))

    @rule(times=st.sampled_from((1, 5, 30)))
    def run(self, times: int) -> None:
        for _ in range(times):
            self.step()
            self.blocks_are_accounted_for()

    def step(self) -> None:
        due = {one.id for one in self.scheduler.running if one.pending == 1 and not one.ends}
        preemptions = self.scheduler.preemptions
        work = self.scheduler.schedule()
        ran = {one.sequence.id for one in work}
        assert bool(work) == bool(self.live) or self.flying
        assert len(ran) == len(work) <= self.scheduler._limits.max_batch_size
        assert sum(one.length for one in work) <= self.budget
        assert all(1 <= one.length <= one.sequence.pending for one in work)
        assert len(due - ran) <= self.scheduler.preemptions - preemptions, "a decoding sequence was left out of a step"
        if self.scheduler.running and not self.scheduler.running[0].ends:
            assert self.scheduler.running[0].id in ran, "the first in rank did not get on"
        for one in work:
            sequence, start = one.sequence, one.sequence.computed
            hashes = self.hashes(sequence)
            for index, block in enumerate(sequence.block_ids[: blocks_for(start)]):
                there = slice(index * BLOCK_SIZE, min(start, (index + 1) * BLOCK_SIZE))
                read = self.cells[block][: there.stop - there.start]
                assert read == hashes[there], "a block holds something else than what its reader needs"
            known = sequence.prompt_log_probs
            if sequence.request.return_prompt_log_probs:
                assert min(start, sequence.prompt_len - 1) <= len(known), "a token was skipped whose logits are needed"
                known += [0.0] * (min(start + one.length, sequence.prompt_len - 1) - len(known))
            for position in range(start, start + one.length):
                block = sequence.block_ids[position // BLOCK_SIZE]
                assert self.pool.references(block) == 1, "a block is written that another reads"
                assert not self.pool.is_published(block), "a published block is written"
                self.cells[block][position % BLOCK_SIZE] = hashes[position]
        for one in work:
            self.scheduler.launched(one)
        collected, self.flying = (self.flying, work) if self.launch_ahead else (work, [])
        for one in collected:
            if one.sequence in self.live:
                self.collect(one)

    def collect(self, one: Work) -> None:
        self.scheduler.collected(one)
        if one.completes:
            one.sequence.append(output_token(one.sequence.id, one.sequence.output_len), None, None)
            if one.sequence.finish_reason is not None:
                self.scheduler.remove(one.sequence)
                self.live.remove(one.sequence)

    def hashes(self, sequence: Sequence) -> list[int]:
        tokens = sequence.tokens + [output_token(sequence.id, sequence.output_len)] * sequence.ahead
        return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        users = [0] * self.pool.total
        for sequence in self.scheduler.running:
            assert len(set(sequence.block_ids)) == len(sequence.block_ids)
            for block in sequence.block_ids:
                users[block] += 1
        assert users == [self.pool.references(block) for block in range(self.pool.total)]
        assert self.pool.free == users.count(0), "a block was lost"
        assert not any(sequence.block_ids for sequence in self.scheduler.waiting)
        members = {one.id for one in self.scheduler.running} | {one.id for one in self.scheduler.waiting}
        assert members == {one.id for one in self.live}
        for sequence in self.live:
            expected = [output_token(sequence.id, index) for index in range(sequence.output_len)]
            assert sequence.tokens[sequence.prompt_len :] == expected, "a token was lost or came twice"

    def teardown(self) -> None:
        """Nobody arrives any more. The first in rank gets on in every step, so this many steps are enough for all."""
        if not hasattr(self, "scheduler"):
            return
        steps = len(self.live) * sum(one.prompt_len + one.request.max_tokens for one in self.live)
        for _ in range(steps):
            if not self.live:
                break
            self.step()
        assert not self.live, "a request never ended"
        self.blocks_are_accounted_for()
        assert self.pool.free == self.pool.total


Serving.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
TestServing = Serving.TestCase


def release_one_block_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Scheduler, sequence: Sequence) -> None:
        self.pool.release(sequence.block_ids[1:])
        sequence.block_ids, sequence.computed = [], 0

    monkeypatch.setattr(Scheduler, "_release", faulty)


def share_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: BlockPool, block: int) -> None:
        self._idle.pop(block, None)
        self._references[block] = max(1, self._references[block])

    monkeypatch.setattr(BlockPool, "share", faulty)


def key_without_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Sequence, index: int) -> bytes:
        return bytes(token % 256 for token in self.tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])

    monkeypatch.setattr(Sequence, "block_key", faulty)


def forget_evicted_keys_never(monkeypatch: pytest.MonkeyPatch) -> None:
    take = BlockPool._take

    def faulty(self: BlockPool) -> int:
        known = self._block_of.copy()
        block = take(self)
        self._block_of.update(known)
        return block

    monkeypatch.setattr(BlockPool, "_take", faulty)


def keep_computed_after_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(self: Scheduler, sequence: Sequence) -> None:
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []

    monkeypatch.setattr(Scheduler, "_release", faulty)


def reuse_of_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sequence, "reusable_tokens", property(lambda self: len(self.tokens)))


def never_admit_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Scheduler._admit
    monkeypatch.setattr(Scheduler, "_admit", lambda self: len(self.waiting) == 1 and admit(self))


@pytest.mark.parametrize(
    "fault",
    [
        release_one_block_less,
        share_without_counting,
        key_without_what_comes_before,
        forget_evicted_keys_never,
        keep_computed_after_preemption,
        reuse_of_the_last_token,
        never_admit_beside_others,
    ],
)
def test_a_planted_fault_is_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    short = settings(
        deadline=None,
        max_examples=200,
        stateful_step_count=30,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        database=None,
        derandomize=True,
    )
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run_state_machine_as_test(Serving, settings=short)
