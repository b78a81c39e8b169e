"""One HTTP connection."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEADERS = 64 * 1024
HEADERS_S = 20.0


class Connection(HttpToolsProtocol):
    """uvicorn's faster protocol, with the limits that it lacks: of the length of headers, trailers and the extensions
    of chunks, and of the time until a request's headers are there, without which connections that say nothing could
    take every file descriptor."""

    headers_s = HEADERS_S
    _pending = 0  # bytes since the parser last came to an end of something
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(self.headers_s, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > LONGEST_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"Headers are limited to {LONGEST_HEADERS} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.headers_s, self.transport.close)

    def on_headers_complete(self) -> None:
        self._pending = 0
        self._wait_no_more()
        if sum(len(name) + len(value) for name, value in self.headers) > LONGEST_HEADERS:
            raise ValueError("the headers are too long")  # to the parser, which refuses the request
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        super().on_message_complete()

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
