"""One HTTP connection."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEADERS = 64 * 1024


class Connection(HttpToolsProtocol):
    """uvicorn's faster protocol, with the limit that its parser lacks: of what is neither body nor complete, so of
    headers, trailers and the extensions of chunks."""

    _pending = 0  # bytes since the parser last came to an end of something

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > LONGEST_HEADERS and not self.transport.is_closing():
            self.send_400_response(f"Headers are limited to {LONGEST_HEADERS} bytes.")

    def on_headers_complete(self) -> None:
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        super().on_message_complete()
