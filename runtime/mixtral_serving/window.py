"""How many responses may be on their way to the detokenizer.

Triton's ensemble has no backpressure: what the engine model sends piles up in front of the detokenizer. So the engine
model stops sending when too many responses are unanswered, and what it holds back grows together into fewer, larger
ones.
"""

from dataclasses import dataclass

from mixtral_serving.counters import Counter, Counters

SIZE = 16  # above what the server's own threads keep in flight, below what a client would notice as delay
_SENT, _HANDLED = int(Counter.SENT), int(Counter.HANDLED)
STALL_S = 0.1  # a window that does not move for so long has lost count, and is opened again


@dataclass(slots=True)
class Window:
    """Responses sent and not yet handled. Some sent ones are never handled: of a stream whose client asked for none of
    the detokenizer's outputs, or whose request ended early. They are forgiven when nothing has moved for STALL_S."""

    counters: Counters
    size: int = SIZE
    _lost: int = 0
    _full: tuple[int, float] | None = None  # how many were handled when it was last seen to be full, and since when

    def sent(self) -> None:
        self.counters.increment(Counter.SENT)

    def is_open(self, now: float) -> bool:
        """now: on the monotonic clock, in seconds."""
        values = self.counters.values
        sent, handled = values[_SENT], values[_HANDLED]
        if sent - handled < self._lost:
            self._lost = sent - handled  # some were answered after all
        if sent - handled - self._lost < self.size:
            self._full = None
        elif self._full is None or self._full[0] != handled:
            self._full = (handled, now)
        elif now - self._full[1] > STALL_S:
            self._lost, self._full = sent - handled, None
        else:
            return False
        return self._full is None
