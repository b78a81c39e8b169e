"""The HTTP server: uvicorn, with a stop signal that lets running requests end."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

import uvicorn

from mixtral_gateway.app import Gateway
from mixtral_gateway.connection import Connection

INTERRUPTED = 130
_LAST_WORDS_S = 2.0  # for the error events of aborted requests


class GatewayServer(uvicorn.Server):
    """At the first signal new requests are refused with 503 while the running ones go on, for at most the drain time;
    at a second one these end with an error at once."""

    def __init__(self, app: Gateway, host: str, port: int, drain_s: float) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            loop="uvloop",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(_LAST_WORDS_S),
        )
        super().__init__(config)
        self._running = app.running
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self.interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # as a library, in a test
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        self.interrupted |= number == signal.SIGINT
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._running.abort()
            self.should_exit = True

    async def _drain(self) -> None:
        self._running.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while len(self._running):
                    await asyncio.sleep(0.05)
        self._running.abort()
        self.should_exit = True
