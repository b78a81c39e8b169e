"""gRPC's call with one request and a stream of responses, over plain HTTP/2 and on asyncio alone.

gRPC's own asyncio channel takes each response through three threads, which is most of what a response costs. HTTP/2 is
the `h2` library's part; gRPC adds five bytes before each message and a status after the last one
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). A server may compress only for a client that says it
can read that, and this one does not.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc

from mixtral_client.http2_connection import Connection, connect
from mixtral_client.http2_stream import StreamFailed

_STATUS = {code.value[0]: code for code in grpc.StatusCode}
# Messages that nobody has read yet may hold so many bytes before the server has to wait.
_UNREAD_BYTES = 128 * 1024


class Http2Channel:
    """Calls of one method. Any number may run at once; they share connections, one as a rule, made when needed.

    url: host:port. path: of the method, as "/package.Service/Method".
    """

    def __init__(
        self, url: str, path: str, serialize: Callable[[Any], bytes], deserialize: Callable[[bytes], Any]
    ) -> None:
        self._url = url
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize
        self._connections: list[Connection] = []
        self._connecting = asyncio.Lock()

    def __call__(self, request: Any) -> "Http2Call":
        return Http2Call(self, self._path, self._serialize(request), self._deserialize)

    def ready(self, other_than: Connection | None = None) -> Connection | None:
        """A connection that takes another stream."""
        return next((found for found in self._connections if found.has_room and found is not other_than), None)

    async def connect(self, other_than: Connection | None = None) -> None:
        """Makes one, unless somebody else did meanwhile. Raises StreamFailed."""
        async with self._connecting:
            if self.ready(other_than) is None:
                self._connections = [connection for connection in self._connections if not connection.closed]
                self._connections.append(await connect(self._url))

    async def close(self) -> None:
        """Fails the calls that still run."""
        for connection in self._connections:
            connection.close()


class Http2Call:
    """As grpc.aio's call: `read` until it returns grpc.aio.EOF. The request is sent with the first `read`, and once
    more over another connection if the server refused it unseen, as one does that goes away."""

    def __init__(self, channel: Http2Channel, path: str, request: bytes, deserialize: Callable[[bytes], Any]) -> None:
        self._channel = channel
        self._path = path
        self._unsent = b"\0" + len(request).to_bytes(4) + request
        self._sent_again_if_refused: bytes | None = self._unsent
        self._deserialize = deserialize
        self._refused_by: Connection | None = None
        self._connection: Connection | None = None
        self._stream = 0
        self._waiter: asyncio.Future[Any] | None = None
        self._messages: deque[bytes] = deque()
        self._partial = bytearray()  # of a message that has not arrived whole
        self._unread = 0  # bytes of all these
        self._unacknowledged = 0  # bytes that the server does not know to be taken
        self._status: dict[bytes, bytes] = {}
        self._failure: StreamFailed | None = None
        self._ended = False

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF. Raises StreamFailed when the call failed, CancelledError when it was
        cancelled. Messages that came before a failure are read first."""
        while True:
            while self._connection is None and not self._ended:
                if (connection := self._channel.ready(self._refused_by)) is not None:
                    self._connection, self._stream = connection, connection.open(self._path, self)
                else:
                    await self._wait_for(asyncio.ensure_future(self._channel.connect(self._refused_by)))
            if self._unsent and self._connection is not None:
                self._unsent = self._connection.send(self._stream, self._unsent)
            if self._messages:
                break
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return grpc.aio.EOF
            await self._wait_for(asyncio.get_running_loop().create_future())
        message = self._messages.popleft()
        self._unread -= len(message)
        if self._unacknowledged:
            self._acknowledge()
        return self._deserialize(message)

    def cancel(self) -> None:
        """Ends the call for both sides; does nothing to one that has ended."""
        if not self._ended:
            self._ended = True
            if self._connection is not None:
                self._connection.reset(self._stream)
            if self._waiter is not None:
                self._waiter.cancel()

    async def _wait_for(self, waiter: asyncio.Future[Any]) -> None:
        self._waiter = waiter
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Something has changed that a `read` may wait for."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def received(self, data: bytes) -> None:
        """A part of the response's body."""
        self._unread += len(data)
        self._unacknowledged += len(data)
        if self._partial or len(data) < 5 or int.from_bytes(data[1:5]) != len(data) - 5 or data[0]:
            self._split(data)
        else:  # as a rule a frame is a message
            self._messages.append(data[5:])
            self._unread -= 5
        self._acknowledge()
        self.wake()

    def headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Those before or after the body. The status may be among either."""
        self._sent_again_if_refused = None
        self._status.update(headers)

    def end(self) -> None:
        """The server has ended the stream."""
        code = self._status.get(b"grpc-status")
        if code is None:
            http = self._status.get(b":status", b"none").decode()
            self.fail(StreamFailed(grpc.StatusCode.INTERNAL, f"no gRPC status, and the HTTP status {http}"))
        elif code != b"0":
            status = _STATUS.get(int(code), grpc.StatusCode.UNKNOWN) if code.isdigit() else grpc.StatusCode.UNKNOWN
            self.fail(StreamFailed(status, unquote(self._status.get(b"grpc-message", b"").decode(errors="replace"))))
        else:
            self._ended = True
            self.wake()

    def fail(self, failure: StreamFailed) -> None:
        if not self._ended:
            self._ended, self._failure = True, failure
            self.wake()

    def refused(self, failure: StreamFailed) -> None:
        """Failed before the server did anything. A second time it is the server's last word."""
        if self._ended or self._sent_again_if_refused is None:
            self.fail(failure)
        else:
            self._unsent, self._sent_again_if_refused = self._sent_again_if_refused, None
            self._refused_by, self._connection = self._connection, None
            self.wake()

    def _split(self, data: bytes) -> None:
        self._partial += data
        while len(self._partial) >= 5 and len(self._partial) >= (end := 5 + int.from_bytes(self._partial[1:5])):
            if self._partial[0]:
                self.cancel()
                self._failure = StreamFailed(grpc.StatusCode.INTERNAL, "the server compressed a message unasked")
                return
            self._messages.append(bytes(self._partial[5:end]))
            self._unread -= 5
            del self._partial[:end]

    def _acknowledge(self) -> None:
        """Lets the server send more, unless messages wait to be read; a message in parts must come whole first."""
        if self._connection is not None and (not self._messages or self._unread < _UNREAD_BYTES):
            self._unacknowledged = self._connection.acknowledge(self._stream, self._unacknowledged)
