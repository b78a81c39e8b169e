"""Who runs in the next step: in-flight batching with chunked prefill, prefix reuse and preemption."""

import time
from bisect import insort
from dataclasses import dataclass
from typing import Self

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.block_pool import BlockPool
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE
from mixtral_runtime.pytorch.sequence import Sequence

# Requests. Priority is a head start in the order of arrival: one of priority 1 goes before those of priority 0 that
# came up to so many requests earlier, and no request is ever overtaken by more than these.
HEAD_START = 1024


@dataclass(frozen=True, slots=True)
class Work:
    """The next `length` tokens of a sequence, those at positions `start` and following, at most what is pending.
    completes: whether the next token can be sampled after this. admission: during which of the sequence's stays in the
    batch; its blocks are others in another."""

    sequence: Sequence
    length: int
    start: int
    completes: bool
    admission: int

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Self:
        return cls(sequence, length, sequence.computed, length == sequence.pending, sequence.admissions)

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def current(self) -> bool:
        """Whether the sequence still has the blocks that this was for."""
        return bool(self.sequence.block_ids) and self.sequence.admissions == self.admission


def rank(sequence: Sequence) -> tuple[float, int]:
    """The lower goes first. It never changes, so whoever waits comes to the front in the end."""
    return sequence.id - HEAD_START * sequence.request.priority, sequence.id


class Scheduler:
    """Sequences wait and run in order of `rank`.

    One is admitted when the blocks for its tokens are free, beside one for each sequence that runs, into which these
    can grow; the first in the queue is not overtaken, so a long request cannot starve behind short ones. Output takes
    its blocks as it grows. When none is free the running sequence of the last rank gives way: its blocks are released
    and it waits again, to be computed anew from the tokens it has by then. The first in rank never gives way and the
    pool holds a longest sequence, so it always gets on, and with it all of them.

    A step may be scheduled before the one before it is collected: each sequence has then at most one token `ahead` that
    is sampled and not known here. Until it is, a sequence that gave way waits, and one whose last token it is gets no
    more work. One that turns out to have ended with it has computed a token in vain, in blocks that nobody shares.
    """

    def __init__(self, limits: EngineLimits, pool: BlockPool) -> None:
        """Raises InvalidArgument when a full batch could not decode in one step."""
        if limits.max_num_tokens < limits.max_batch_size:
            raise InvalidArgument(
                f"max_num_tokens is {limits.max_num_tokens}, it must be at least max_batch_size, which is "
                f"{limits.max_batch_size}: every running sequence decodes one token a step"
            )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.pool = pool
        self.preemptions = 0
        self.prompt_tokens = 0  # of prompts, computed or reused, each once
        self.blocks_reused = self.blocks_missed = 0  # full blocks of prompts, each once
        self._limits = limits

    def add(self, sequence: Sequence) -> None:
        """Raises Unavailable when the queue is full."""
        limit = self._limits.max_queue_size
        if len(self.waiting) >= limit:
            raise Unavailable(f"the queue is full: {len(self.waiting)} requests wait, the limit is {limit}")
        insort(self.waiting, sequence, key=rank)

    def remove(self, sequence: Sequence) -> None:
        """Takes a live sequence out of the queue or the batch and frees its blocks."""
        if sequence.block_ids:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Work]:
        """The work of the next step, empty only when nothing is live, or waits for a token that is on its way.

        Decode comes first and always fits, so it never starves; prefill chunks share the rest of max_num_tokens in
        order of rank, those of new sequences among them.
        """
        work: list[Work] = []
        prefilling: list[Sequence] = []
        for sequence in self.running.copy():  # in order of rank: whoever gives way comes later than who needs a block
            gave_way = not sequence.block_ids  # to one before it
            if gave_way or sequence.ends:
                continue
            if sequence.pending > 1:
                prefilling.append(sequence)
            elif self._grow(sequence):
                work.append(Work.of(sequence, 1))
        budget = self._limits.max_num_tokens - len(work)
        prefilling = [sequence for sequence in prefilling if sequence.block_ids]
        admitting = True
        while budget > 0:
            if admitting and self.waiting and (not prefilling or rank(self.waiting[0]) < rank(prefilling[0])):
                if admitting := self._admit():
                    prefilling.insert(0, self.waiting.pop(0))
                continue
            if not prefilling:
                break
            sequence = prefilling.pop(0)
            self._reuse(sequence)
            length = min(sequence.pending, budget)
            work.append(Work.of(sequence, length))
            budget -= length
        live = (*self.running, *self.waiting)
        assert work or not live or any(sequence.ahead for sequence in live)
        return work

    def launched(self, work: Work) -> None:
        """A step that writes the keys and values of this work has been launched: the next may count on them."""
        if work.current:
            work.sequence.computed = work.end
        work.sequence.ahead += work.completes

    def failed(self, work: Work) -> None:
        """A launched step has written nothing after all."""
        work.sequence.ahead -= work.completes
        if work.current:
            work.sequence.computed = work.start

    def collected(self, work: Work) -> None:
        """The step has written the keys and values of this work, and what it sampled is known."""
        sequence = work.sequence
        sequence.ahead -= work.completes
        if sequence.counted < sequence.prompt_len:
            self.blocks_missed += self._count(sequence, work.end)
        if not self.pool.reuse or not work.current:
            return
        for index in range(work.start // BLOCK_SIZE, work.end // BLOCK_SIZE):
            self.pool.publish(sequence.block_ids[index], sequence.block_key(index))

    def _admit(self) -> bool:
        """Gives the first in the queue its blocks and a place in the batch, where there are both."""
        if len(self.running) >= self._limits.max_batch_size:
            return False
        sequence = self.waiting[0]
        if sequence.ahead:
            return False
        found = self._find(sequence)
        needed = blocks_for(len(sequence.tokens)) - len(found)
        idle = sum(self.pool.references(block) == 0 for block in found)
        if needed + len(self.running) > self.pool.free - idle:
            return False
        for block in found:
            self.pool.share(block)
        sequence.block_ids = found + self.pool.allocate(needed)
        sequence.admissions += 1
        sequence.admitted_at = sequence.admitted_at or time.monotonic()
        insort(self.running, sequence, key=rank)
        return True

    def _find(self, sequence: Sequence) -> list[int]:
        """The published blocks with which the sequence's tokens begin, as many as it may take over."""
        found: list[int] = []
        for index in range(sequence.reusable_tokens // BLOCK_SIZE):
            block = self.pool.find(sequence.block_key(index)) if self.pool.reuse else None
            if block is None:
                break
            found.append(block)
        return found

    def _reuse(self, sequence: Sequence) -> None:
        """Goes over the blocks that need not be computed: those taken over at the admission, and those that another
        sequence has published since, which replace its own."""
        if not self.pool.reuse:
            return
        while (index := sequence.computed // BLOCK_SIZE) < sequence.reusable_tokens // BLOCK_SIZE:
            block, own = self.pool.find(sequence.block_key(index)), sequence.block_ids[index]
            if block is None:
                return
            if block != own:
                self.pool.share(block)
                self.pool.release([own])
                sequence.block_ids[index] = block
            sequence.computed = (index + 1) * BLOCK_SIZE
            self.blocks_reused += self._count(sequence, sequence.computed)

    def _count(self, sequence: Sequence, computed: int) -> int:
        """Takes note of the prompt tokens that were not counted yet; how many full blocks end among them."""
        known = min(computed, sequence.prompt_len)
        before, sequence.counted = sequence.counted, max(sequence.counted, known)
        self.prompt_tokens += sequence.counted - before
        return sequence.counted // BLOCK_SIZE - before // BLOCK_SIZE

    def _grow(self, sequence: Sequence) -> bool:
        """A block for the next token where the last is full. False when the sequence itself had to give way."""
        if sequence.computed < len(sequence.block_ids) * BLOCK_SIZE:
            return True
        while not self.pool.free:
            last = self.running.pop()
            self._release(last)
            self.preemptions += 1
            insort(self.waiting, last, key=rank)
            if last is sequence:
                return False
        sequence.block_ids += self.pool.allocate(1)
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.computed = 0
