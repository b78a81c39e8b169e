"""The asyncio client's own HTTP/2, before gRPC's server: what is larger than a window, readers that lag, ends."""

import asyncio
import gc
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from mixtral_client.http2_channel import Http2Channel
from mixtral_client.http2_connection import CONNECTION_WINDOW, STREAM_WINDOW, Connection
from mixtral_client.http2_stream import StreamFailed

METHOD = "/test.Service/Method"
Serve = Callable[[bytes, Any], Iterator[bytes]]  # request, context -> responses
Open = Callable[..., Http2Channel]


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[grpc.Server, str]]]:
    """Starts a server of one method; returns it and its address."""
    servers = []

    def start(serve: Serve, **options: Any) -> tuple[grpc.Server, str]:
        pool = ThreadPoolExecutor(max_workers=8)
        server = grpc.server(pool, options=[(f"grpc.{name}", value) for name, value in options.items()])
        handler = grpc.unary_stream_rpc_method_handler(serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Method": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append((server, pool))
        return server, f"127.0.0.1:{port}"

    yield start
    for server, pool in servers:
        server.stop(grace=0).wait()
        pool.shutdown()


def run(url: str, use: Callable[[Http2Channel], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        channel = Http2Channel(url, METHOD, bytes, bytes)
        try:
            async with asyncio.timeout(30):
                return await use(channel)
        finally:
            await channel.close()

    return asyncio.run(inside())


async def ask(channel: Http2Channel, request: bytes = b"") -> list[bytes]:
    call, messages = channel(request), []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


def test_requests_and_responses_larger_than_any_window_arrive_whole(start: Any) -> None:
    options = {"max_receive_message_length": -1, "max_send_message_length": -1}
    _, url = start(lambda request, _: iter([request, b"", request[:70_000]]), **options)
    large = bytes(range(256)) * (16 * STREAM_WINDOW // 256)
    assert run(url, lambda channel: ask(channel, large)) == [large, b"", large[:70_000]]


def test_many_more_bytes_than_the_connections_window_pass_over_it(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixtral_client.http2_connection.CONNECTION_WINDOW", STREAM_WINDOW)
    assert STREAM_WINDOW < CONNECTION_WINDOW
    _, url = start(lambda *_: iter([bytes(60_000)] * 64))
    assert sum(map(len, run(url, ask))) == 64 * 60_000


def test_a_reader_that_lags_holds_up_the_server_and_no_other_stream(start: Any) -> None:
    sent = 0

    def serve(request: bytes, _: Any) -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            yield bytes(16_384)
            sent += request == b"slow"

    _, url = start(serve)

    async def use(channel: Http2Channel) -> int:
        slow = channel(b"slow")
        await slow.read()
        for _ in range(3):
            assert len(await ask(channel)) == 1000
        held = sent
        assert held < 100
        for _ in range(999):
            await slow.read()
        assert await slow.read() is grpc.aio.EOF
        return held

    assert run(url, use) > 1


def test_a_call_that_is_cancelled_ends_on_the_server(start: Any) -> None:
    ended = threading.Event()

    def serve(_: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        yield b"first"
        ended.wait(30)

    _, url = start(serve)

    async def use(channel: Http2Channel) -> None:
        call = channel(b"")
        assert await call.read() == b"first"
        waiting = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(ended.wait, 20)

    run(url, use)


def test_the_servers_status_comes_after_its_messages(start: Any) -> None:
    def serve(_: bytes, context: Any) -> Iterator[bytes]:
        yield b"first"
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "zu viel: 100 %, „genug“")

    _, url = start(serve)

    async def use(channel: Http2Channel) -> None:
        call = channel(b"")
        assert await call.read() == b"first"
        with pytest.raises(StreamFailed) as failure:
            await call.read()
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.value.details() == "zu viel: 100 %, „genug“"

    run(url, use)


def test_streams_beyond_what_a_connection_takes_get_another_one(start: Any) -> None:
    together = threading.Barrier(6)  # the server has as many at once only over three connections

    def serve(*_: Any) -> Iterator[bytes]:
        together.wait(20)
        yield b"done"

    _, url = start(serve, max_concurrent_streams=2)

    async def use(channel: Http2Channel) -> list[list[bytes]]:
        return await asyncio.gather(*(ask(channel) for _ in range(6)))

    assert run(url, use) == [[b"done"]] * 6


def test_a_server_that_goes_away_ends_what_it_has_and_gets_no_more(start: Any) -> None:
    leaving = threading.Event()

    def serve(*_: Any) -> Iterator[bytes]:
        yield b"first"
        leaving.wait(20)
        yield b"last"

    server, url = start(serve)

    async def use(channel: Http2Channel) -> None:
        call = channel(b"")
        assert await call.read() == b"first"
        stopped = server.stop(grace=20)
        while channel.ready() is not None:  # until its message of going has come
            await asyncio.sleep(0.01)
        with pytest.raises(StreamFailed, match="failed to connect"):
            await ask(channel)
        leaving.set()
        assert await call.read() == b"last"
        assert await call.read() is grpc.aio.EOF
        await asyncio.to_thread(stopped.wait)

    run(url, use)


def test_a_connection_that_breaks_fails_its_calls_and_the_next_one_connects_anew(start: Any) -> None:
    _, url = start(lambda *_: iter([b"answer"]))

    async def use(channel: Http2Channel) -> None:
        assert await ask(channel) == [b"answer"]
        connection = channel.ready()
        assert connection is not None
        call = channel(b"")
        waiting = asyncio.create_task(call.read())
        await asyncio.sleep(0)
        connection._transport.abort()
        with pytest.raises(StreamFailed) as failure:
            await waiting
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await ask(channel) == [b"answer"]

    run(url, use)


@pytest.mark.parametrize("spoken", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b""])
def test_what_is_not_http2_is_a_failure_to_connect(spoken: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(24)
                connection.sendall(spoken)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StreamFailed, match="failed to connect"):
            run(f"127.0.0.1:{listening.getsockname()[1]}", ask)
        thread.join()


def test_a_connection_that_nobody_waits_for_fails_in_silence() -> None:
    """As one whose caller was cancelled while it was made."""
    complaints: list[dict[str, Any]] = []

    async def lose_one() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        connection = Connection("127.0.0.1:1")
        connection.connection_lost(None)
        with pytest.raises(StreamFailed, match="failed to connect: Socket closed"):
            await connection.greeted
        unseen = Connection("127.0.0.1:1")
        unseen.connection_lost(None)
        del unseen
        gc.collect()

    asyncio.run(lose_one())
    assert complaints == []
