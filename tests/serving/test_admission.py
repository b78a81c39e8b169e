"""What waits in front of the engine is bounded in prompt tokens, whatever arrives, and what is refused is refused at
once."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_serving.admission import LONGEST_PROMPTS, Admission

LIMITS = EngineLimits(max_batch_size=3, max_input_len=100, max_seq_len=200, max_num_tokens=64)


@dataclass
class Waiting:
    engine_id: int
    tokens: int
    streaming: bool


class Queue:
    """An engine's queue and batch, and an admission that is told what the engine model sees of them."""

    def __init__(self, limit: int) -> None:
        self.admission = Admission(LIMITS, limit)
        self.waiting: list[Waiting] = []
        self.running: list[Waiting] = []
        self._next = 0

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.waiting)

    def submit(self, tokens: int, streaming: bool = True) -> None:
        self.admission.check(tokens, len(self.waiting))
        self._next += 1
        self.waiting.append(Waiting(self._next, tokens, streaming))
        self.admission.add(self._next, tokens)

    def step(self) -> None:
        while self.waiting and len(self.running) < LIMITS.max_batch_size:
            self.running.append(self.waiting.pop(0))
        for entry in self.running:
            if entry.streaming:
                self.admission.begun(entry.engine_id)

    def end(self, index: int) -> None:
        """Cancelled, late or complete, wherever it is."""
        live = self.running + self.waiting
        if live:
            entry = live[index % len(live)]
            (self.running if entry in self.running else self.waiting).remove(entry)
            self.admission.begun(entry.engine_id)


ARRIVALS = st.tuples(st.integers(1, 100), st.booleans())
EVENTS = st.lists(st.one_of(ARRIVALS, st.just("step"), st.integers(0, 20)), max_size=80)


@given(events=EVENTS, limit=st.integers(100, 400))
def test_no_arrivals_exceed_the_bound_and_none_is_refused_below_it(
    events: list[tuple[int, bool] | str | int], limit: int
) -> None:
    queue = Queue(limit)
    for event in events:
        if isinstance(event, tuple):
            fits = queue.tokens + event[0] <= limit
            if fits:
                queue.submit(*event)
            else:
                with pytest.raises(Unavailable):
                    queue.submit(*event)
        elif event == "step":
            queue.step()
        else:
            assert isinstance(event, int)
            queue.end(event)
        assert queue.tokens == queue.admission.queued_tokens(len(queue.waiting)) <= limit
    while queue.running or queue.waiting:
        queue.end(0)
    assert len(queue.admission) == 0, "nothing is kept of requests that ended"


def test_a_refusal_names_the_limit_and_the_value() -> None:
    queue = Queue(100)
    queue.submit(60)
    with pytest.raises(Unavailable, match="60 prompt tokens wait and the prompt has 41, the limit is 100"):
        queue.submit(41)
    queue.submit(40)


def test_the_limit_is_at_least_the_longest_prompt() -> None:
    with pytest.raises(
        InvalidArgument, match="max_queued_tokens is 99, it must be at least the engine's max_input_len"
    ):
        Admission(LIMITS, 99)
    assert Admission(LIMITS, None).max_queued_tokens == LONGEST_PROMPTS * 100
