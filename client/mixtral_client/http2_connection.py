"""One HTTP/2 connection to a gRPC server, without encryption."""

import asyncio
import contextlib
import os
import socket
from typing import Any

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import WindowUpdateFrame

from mixtral_client.http2_stream import Call, StreamFailed, failure_of_reset

STREAM_WINDOW = 256 * 1024  # bytes that the server may send on a stream before some are acknowledged
CONNECTION_WINDOW = 2**30  # never the limit: a stream that nobody reads must not hold up the others
_LAST_STREAM = 2**30  # of 2**31 - 1: a connection lives for some hundred million streams, then comes another
_HEAD = 9  # bytes before each frame: length, type, flags, stream
_DATA, _GOAWAY = 0, 7  # types
_SILENCE_MS = 20_000  # without the other side's TCP confirming what was sent to it, the connection is dead


async def connect(url: str) -> "Connection":
    """url: host:port. Raises StreamFailed, UNAVAILABLE."""
    host, _, port = url.rpartition(":")
    reason = "no address"
    loop = asyncio.get_running_loop()
    try:
        for *_, address in await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            try:
                transport, connection = await loop.create_connection(lambda: Connection(url), *address[:2])
            except OSError as error:
                reason = _told(error)
                continue
            try:
                await connection.greeted  # before that it is not known how many streams the server takes
            except asyncio.CancelledError:
                transport.abort()
                raise
            return connection
    except (OSError, ValueError) as error:
        reason = _told(error)
    raise StreamFailed(grpc.StatusCode.UNAVAILABLE, f"failed to connect: {reason}")


def _told(error: Exception) -> str:
    """What the system calls it: asyncio's sentences differ from loop to loop."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
    return os.strerror(number) if number else str(error)


class Connection(asyncio.Protocol):
    """lost: it takes no more streams, those that it has may go on. greeted: done when the other side has spoken HTTP/2,
    raises StreamFailed when it does not."""

    def __init__(self, url: str) -> None:
        self.lost = False
        self._authority = url
        self._calls: dict[int, Call] = {}
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""  # of a frame that has not arrived whole
        self._unacknowledged = 0
        self._blocked: set[int] = set()  # streams on which the server took only a part
        self._transport: Any = None
        # Ours are right, and the server's are its own business: h2 need not check them.
        configuration = H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._h2 = H2Connection(configuration)
        values = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW}
        self._h2.local_settings = Settings(client=True, initial_values=values)

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def has_room(self) -> bool:
        return not self.lost and len(self._calls) < self._h2.remote_settings.max_concurrent_streams

    def open(self, path: str, call: Call) -> int:
        """Sends the headers of a request; returns the stream's number."""
        stream: int = self._h2.get_next_available_stream_id()
        self.lost |= stream >= _LAST_STREAM
        self._calls[stream] = call
        self._h2.send_headers(
            stream,
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", self._authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"mixtral-client"),
            ],
        )
        return stream

    def send(self, stream: int, data: bytes) -> bytes:
        """Sends of a request's body what the server takes. Returns the rest; the call is woken when more can go."""
        self._blocked.discard(stream)
        while data and stream in self._calls:
            size = min(len(data), self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if size <= 0:
                self._blocked.add(stream)
                break
            self._h2.send_data(stream, data[:size], end_stream=size == len(data))
            data = data[size:]
        self._flush()
        return data

    def acknowledge(self, stream: int, size: int) -> int:
        """Lets the server send so many bytes more on a stream. Small sizes are left to be told with later ones:
        returns what is left."""
        if size < STREAM_WINDOW // 4 or stream not in self._calls:
            return size
        self._transport.write(WindowUpdateFrame(stream, size).serialize())
        return 0

    def reset(self, stream: int) -> None:
        if self._calls.pop(stream, None) is not None:
            with contextlib.suppress(H2Error):
                self._h2.reset_stream(stream, ErrorCodes.CANCEL)
                self._flush()
            self._close_if_done()

    def close(self) -> None:
        self._fail(grpc.StatusCode.CANCELLED, "the client was closed")
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        opened = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or "Socket closed"
        self._fail(grpc.StatusCode.UNAVAILABLE, reason)

    def data_received(self, data: bytes) -> None:
        """Frames of data without flags, so nearly all, are taken past h2, which would need most of the time for them.
        So the windows are ours as well."""
        data = self._rest + data if self._rest else data
        begin, length = 0, len(data)
        while length - begin >= _HEAD and not self.closed:
            end = begin + _HEAD + int.from_bytes(data[begin : begin + 3])
            if end > length:
                break
            if data[begin + 3] == _DATA and data[begin + 4] == 0:
                self._take_data(int.from_bytes(data[begin + 5 : begin + _HEAD]), data[begin + _HEAD : end])
            elif data[begin + 3] == _GOAWAY:
                self._end_after(int.from_bytes(data[begin + _HEAD : begin + _HEAD + 4]))
            else:
                self._take_frame(data[begin:end])
            begin = end
        self._rest = data[begin:]
        if len(self._rest) > _HEAD + self._h2.max_inbound_frame_size:
            self._take_frame(self._rest)  # which refuses it
        self._flush()

    def _take_data(self, stream: int, data: bytes) -> None:
        self._unacknowledged += len(data)
        if self._unacknowledged > CONNECTION_WINDOW // 2:
            self._transport.write(WindowUpdateFrame(0, self._unacknowledged).serialize())
            self._unacknowledged = 0
        if (call := self._calls.get(stream)) is not None:
            call.received(data)

    def _take_frame(self, frame: bytes) -> None:
        try:
            events = self._h2.receive_data(frame)
        except H2Error as error:
            self._fail(grpc.StatusCode.UNAVAILABLE, f"not HTTP/2: {error}" if self.greeted.done() else "Socket closed")
            self._transport.close()
            return
        for event in events:
            self._take(event)

    def _take(self, event: Any) -> None:
        if isinstance(event, DataReceived):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.received(event.data)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.headers(event.headers)
        elif isinstance(event, StreamEnded):
            if (call := self._calls.pop(event.stream_id, None)) is not None:
                call.end()
                self._close_if_done()
        elif isinstance(event, StreamReset):
            if (call := self._calls.pop(event.stream_id, None)) is not None:
                failure = failure_of_reset(event.error_code)
                (call.refused if event.error_code == ErrorCodes.REFUSED_STREAM else call.fail)(failure)
                self._close_if_done()
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            if not self.greeted.done():
                self.greeted.set_result(None)
            for stream in self._blocked & self._calls.keys():
                self._calls[stream].wake()

    def _end_after(self, last: int) -> None:
        """The server has taken no streams after this one. h2 would take no more frames of the others either."""
        self.lost = True
        for stream in [stream for stream in self._calls if stream > last]:
            self._calls.pop(stream).refused(StreamFailed(grpc.StatusCode.UNAVAILABLE, "the server is going away"))
        self._close_if_done()

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        self.lost = True
        if not self.greeted.done():
            self.greeted.set_exception(StreamFailed(code, f"failed to connect: {details}"))
            self.greeted.exception()  # who made this connection may have been cancelled: nobody need look at it
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(StreamFailed(code, details))

    def _close_if_done(self) -> None:
        if self.lost and not self._calls:
            self._transport.close()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)
