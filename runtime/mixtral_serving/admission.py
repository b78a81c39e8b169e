"""How much may wait in front of the engine, in prompt tokens: the time until a new request begins follows from it.

The engines limit the number of waiting requests themselves. The bound here is the same for every runtime, as none of
them tells which requests wait: all begin in the order of submission, so those that wait are the last ones.
"""

from itertools import islice

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable

LONGEST_PROMPTS = 64  # the default limit is so many prompts of the greatest length


class Admission:
    """The prompt tokens of requests that the engine holds and of which nothing has come yet.

    What a request may still generate does not count: it is an upper bound that clients set far too high. The calls are
    made under the caller's lock.
    """

    def __init__(self, limits: EngineLimits, max_queued_tokens: int | None) -> None:
        """max_queued_tokens: None for the default. Raises InvalidArgument when the longest prompt could never wait."""
        self.max_queued_tokens = max_queued_tokens or LONGEST_PROMPTS * limits.max_input_len
        if self.max_queued_tokens < limits.max_input_len:
            raise InvalidArgument(
                f"max_queued_tokens is {self.max_queued_tokens}, it must be at least the engine's max_input_len, "
                f"{limits.max_input_len}"
            )
        self._not_begun: dict[int, int] = {}  # prompt tokens by engine id, in order of submission

    def __len__(self) -> int:
        return len(self._not_begun)

    def queued_tokens(self, queued: int) -> int:
        """queued: how many requests the engine says are waiting."""
        return sum(islice(reversed(self._not_begun.values()), queued))

    def check(self, tokens: int, queued: int) -> None:
        """For one more request with so many prompt tokens. Raises Unavailable with the limit and the value."""
        waiting = self.queued_tokens(queued)
        if waiting + tokens > self.max_queued_tokens:
            raise Unavailable(
                f"the queue is full: {waiting} prompt tokens wait and the prompt has {tokens}, "
                f"the limit is {self.max_queued_tokens}"
            )

    def add(self, engine_id: int, tokens: int) -> None:
        self._not_begun[engine_id] = tokens

    def begun(self, engine_id: int) -> None:
        """Something came of it, be it its end."""
        self._not_begun.pop(engine_id, None)
