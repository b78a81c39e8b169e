"""Who runs in the next step: in-flight batching with chunked prefill."""

import time
from bisect import insort
from dataclasses import dataclass

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.kv_cache import BlockPool
from mixtral_runtime.pytorch.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """The next `length` tokens of a sequence, at most what is pending."""

    sequence: Sequence
    length: int

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after this."""
        return self.length == self.sequence.pending


class Scheduler:
    """Sequences wait in order of priority, then arrival, and run from their admission to their end.

    A sequence is admitted when the blocks for its prompt and its longest output are free, and owns them to its end
    (TensorRT-LLM's GUARANTEED_NO_EVICT): none ever waits for another's memory while it runs, so there is no deadlock.
    The head of the queue is not overtaken, so a long request cannot starve behind short ones.
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
        self._limits = limits

    @property
    def live(self) -> list[Sequence]:
        return self.running + self.waiting

    def add(self, sequence: Sequence) -> None:
        """Raises Unavailable when the queue is full."""
        limit = self._limits.max_queue_size
        if len(self.waiting) >= limit:
            raise Unavailable(f"the queue is full: {len(self.waiting)} requests wait, the limit is {limit}")
        insort(self.waiting, sequence, key=lambda s: (-s.request.priority, s.id))

    def remove(self, sequence: Sequence) -> None:
        """Takes a live sequence out of the queue or the batch and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.id, sequence.block_ids)
            sequence.block_ids = []
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Work]:
        """The work of the next step, empty only when nothing is live.

        Decode comes first and always fits, so it never starves; prefill chunks share the rest of max_num_tokens in
        order of admission, and what is left admits from the queue.
        """
        decoding = [s for s in self.running if s.decoding]
        work = [Work(s, 1) for s in decoding]
        budget = self._limits.max_num_tokens - len(work)
        prefilling = [s for s in self.running if not s.decoding]
        while budget > 0 and (sequence := prefilling.pop(0) if prefilling else self._admit()):
            length = min(sequence.pending, budget)
            work.append(Work(sequence, length))
            budget -= length
        assert work or not self.live
        return work

    def _admit(self) -> Sequence | None:
        if not self.waiting or len(self.running) >= self._limits.max_batch_size:
            return None
        needed = blocks_for(self.waiting[0].max_cached_tokens)
        if needed > self.pool.free:
            return None
        sequence = self.waiting.pop(0)
        sequence.admitted_at = time.monotonic()
        sequence.block_ids = self.pool.allocate(sequence.id, needed)
        self.running.append(sequence)
        return sequence
