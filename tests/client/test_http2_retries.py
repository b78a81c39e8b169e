"""A stream that the server refused unseen is sent once more, over another connection; anything else is not."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded

from mixtral_client.http2_channel import Http2Channel
from mixtral_client.http2_stream import StreamFailed

Reply = Callable[[H2Connection, int], None]  # to a stream, by number
LARGE = bytes(range(256)) * 1024  # more than the server takes before it has acknowledged some


def answer(connection: H2Connection, stream: int) -> None:
    begin(connection, stream)
    connection.send_data(stream, b"\0\0\0\0\6answer")
    connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)


def begin(connection: H2Connection, stream: int) -> None:
    connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])


def begin_and_refuse(connection: H2Connection, stream: int) -> None:
    begin(connection, stream)
    refuse(connection, stream)


def say_something_and_go(connection: H2Connection, stream: int) -> None:
    begin(connection, stream)
    connection.send_data(stream, b"\0\0\0\0\5first")
    go(connection, stream)


def refuse(connection: H2Connection, stream: int) -> None:
    connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)


def break_off(connection: H2Connection, stream: int) -> None:
    connection.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)


def go(connection: H2Connection, stream: int) -> None:
    connection.close_connection(last_stream_id=stream - 2 if stream > 1 else 0)


class Server:
    """replies: to the requests in their order; those without one are answered. early: already to their headers.
    connections: of each the requests' bodies by stream."""

    def __init__(self, *replies: Reply, early: bool = False) -> None:
        self.replies = list(replies)
        self.early = early
        self.connections: list[dict[int, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        bodies: dict[int, bytes] = {}
        self.connections.append(bodies)
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    bodies[event.stream_id] = b""
                if isinstance(event, DataReceived):
                    bodies[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if isinstance(event, RequestReceived if self.early and self.replies else StreamEnded):
                    (self.replies.pop(0) if self.replies else answer)(connection, event.stream_id)
            writer.write(connection.data_to_send())
        writer.close()


def ask(server: Server, *requests: bytes) -> list[Any]:
    """The messages that each request got, or its failure."""

    async def one(channel: Http2Channel, request: bytes) -> list[bytes]:
        call, messages = channel(request), []
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
        return messages

    async def all_of_them() -> list[Any]:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        channel = Http2Channel(f"127.0.0.1:{port}", "/test.Service/Method", bytes, bytes)
        try:
            async with asyncio.timeout(30):
                return await asyncio.gather(*(one(channel, each) for each in requests), return_exceptions=True)
        finally:
            await channel.close()
            listening.close()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("refusal", [go, refuse])
@pytest.mark.parametrize("early", [False, True])
def test_a_refused_request_is_sent_whole_over_another_connection(refusal: Reply, early: bool) -> None:
    server = Server(refusal, early=early)
    assert ask(server, LARGE) == [[b"answer"]]
    first, second = server.connections
    assert second == {1: b"\0" + len(LARGE).to_bytes(4) + LARGE}
    assert len(first) == 1


def test_a_server_that_goes_finishes_what_it_has_taken() -> None:
    def go_after_the_first(connection: H2Connection, stream: int) -> None:
        answer(connection, 1)
        go(connection, stream)

    server = Server(lambda *_: None, go_after_the_first)
    assert ask(server, b"first", b"second") == [[b"answer"]] * 2
    assert [sorted(body[5:] for body in bodies.values()) for bodies in server.connections] == [
        [b"first", b"second"],
        [b"second"],
    ]


@pytest.mark.parametrize("refusal", [go, refuse])
def test_a_second_refusal_is_the_answer(refusal: Reply) -> None:
    server = Server(refusal, refusal)
    (failure,) = ask(server, b"request")
    assert isinstance(failure, StreamFailed)
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert len(server.connections) == 2


@pytest.mark.parametrize("end", [begin_and_refuse, say_something_and_go, break_off])
def test_a_request_that_may_have_been_seen_is_not_sent_again(end: Reply) -> None:
    server = Server(end)
    (failure,) = ask(server, b"request")
    assert isinstance(failure, StreamFailed)
    assert len(server.connections) == len(server.connections[0]) == 1
