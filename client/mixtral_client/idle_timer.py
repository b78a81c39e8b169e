"""One timer for all the waits of a stream."""

import asyncio
from collections.abc import Callable


class IdleTimer:
    """Calls `expire` once when one wait, from `begin` to `end`, lasts longer than the timeout.

    It looks again only when the current wait would be over: a timer of its own for each response of a stream costs as
    much as decoding the response. Needs a running event loop; `close` it when the stream has ended.
    """

    def __init__(self, timeout_s: float, expire: Callable[[], object]) -> None:
        self.expired = False
        self._timeout_s = timeout_s
        self._expire = expire
        self._since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._look)

    def begin(self) -> None:
        self._since = self._loop.time()

    def end(self) -> None:
        self._since = None

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._timeout_s - (0.0 if self._since is None else self._loop.time() - self._since)
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.expired = True
            self._expire()
