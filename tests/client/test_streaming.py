"""Both clients against a server on loopback: text, ends, errors, silence and cancelling."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scripted_server
from scripted_server import ScriptedServer, answer, failure, hang, heartbeat, pause

from mixtral_client import (
    AsyncClient,
    Chunk,
    Client,
    GenerationOptions,
    IdleTimeout,
    Internal,
    InvalidArgument,
    ProtocolError,
    Result,
    ServerError,
    ServerUnreachable,
)

Collect = Callable[..., list[Chunk]]
CANCEL_WAIT_S = 20.0  # how long a cancel may take on a busy machine


def collect_blocking(
    url: str, idle_timeout_s: float = 30.0, into: list[Chunk] | None = None, **request: Any
) -> list[Chunk]:
    chunks = [] if into is None else into
    with Client(url, idle_timeout_s=idle_timeout_s) as client:
        for chunk in client.stream(**request):
            chunks.append(chunk)
    return chunks


def collect_async(
    url: str, idle_timeout_s: float = 30.0, into: list[Chunk] | None = None, **request: Any
) -> list[Chunk]:
    chunks = [] if into is None else into

    async def run() -> None:
        async with AsyncClient(url, idle_timeout_s=idle_timeout_s) as client:
            async for chunk in client.stream(**request):
                chunks.append(chunk)

    asyncio.run(run())
    return chunks


@pytest.fixture(params=[collect_blocking, collect_async], ids=["blocking", "asyncio"])
def collect(request: pytest.FixtureRequest) -> Collect:
    function: Collect = request.param
    return function


def test_chunks_arrive_and_join_to_the_text(server: ScriptedServer, collect: Collect) -> None:
    server.play(
        answer("Zwölf"), heartbeat(), answer(" 🦊"), answer("!", finish="length", num_output_tokens=[[3]], final=True)
    )
    chunks = collect(server.url, prompt="Hi")
    assert [chunk.text for chunk in chunks] == ["Zwölf", " 🦊", "!"]
    result = Result.join(chunks)
    assert (result.text, result.finish_reason, result.usage.num_output_tokens) == ("Zwölf 🦊!", "length", 3)
    assert not server.cancelled.is_set()


def test_the_first_chunk_arrives_before_the_generation_ends(server: ScriptedServer) -> None:
    server.play(answer("first"), hang())
    with Client(server.url) as client, contextlib.closing(client.stream("Hi")) as chunks:
        assert next(chunks).text == "first"


def test_the_final_flag_may_come_on_an_empty_response(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer("a", finish="stop"), heartbeat(), answer(final=True))
    assert Result.join(collect(server.url, prompt="Hi")).finish_reason == "stop"


def test_the_request_is_what_was_asked_for(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer(finish="stop", final=True))
    collect(server.url, input_ids=[1, 5], options=GenerationOptions(max_tokens=9), request_id="my-request")
    request = server.requests[0]
    assert (request.model_name, request.id) == ("ensemble", "my-request")
    assert scripted_server.inputs_of(request)["input_ids"] == [[1, 5]]
    assert scripted_server.inputs_of(request)["max_tokens"] == [[9]]


def test_each_request_has_an_id_of_its_own(server: ScriptedServer) -> None:
    server.play(answer(finish="stop", final=True))
    with Client(server.url) as client:
        results = [client.generate("Hi"), client.generate("Hi")]
    ids = [request.id for request in server.requests]
    assert ids == [result.request_id for result in results]
    assert len(set(ids)) == 2


def test_the_header_that_crashes_servers_is_never_sent(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer(finish="stop", final=True))
    collect(server.url, prompt="Hi")
    assert "triton_grpc_error" not in server.metadata[0]


def test_a_refused_request_raises_the_servers_sentence(server: ScriptedServer, collect: Collect) -> None:
    server.play(failure("in ensemble 'ensemble', INVALID_ARGUMENT: max_tokens is 5000, the limit is 4096"))
    with pytest.raises(InvalidArgument, match=r"^max_tokens is 5000, the limit is 4096$"):
        collect(server.url, prompt="Hi")


def test_an_error_in_mid_stream_comes_after_the_text_before_it(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer("half"), failure("in ensemble 'ensemble', INTERNAL: the engine stopped"))
    chunks: list[Chunk] = []
    with pytest.raises(Internal, match="the engine stopped"):
        collect(server.url, prompt="Hi", into=chunks)
    assert [chunk.text for chunk in chunks] == ["half"]


def test_a_stream_closed_without_an_end_is_an_error(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer("half"))
    with pytest.raises(ProtocolError, match="without a final response"):
        collect(server.url, prompt="Hi")


def test_a_request_that_is_wrong_in_itself_is_not_sent(server: ScriptedServer, collect: Collect) -> None:
    with pytest.raises(InvalidArgument, match="exactly one"):
        collect(server.url, prompt="Hi", input_ids=[1])
    assert not server.requests


def test_silence_raises_idle_timeout_and_cancels(server: ScriptedServer, collect: Collect) -> None:
    server.play(answer("a"), hang())
    with pytest.raises(IdleTimeout, match=r"0\.3 s"):
        collect(server.url, idle_timeout_s=0.3, prompt="Hi")
    assert server.cancelled.wait(CANCEL_WAIT_S)


def test_heartbeats_break_the_silence(server: ScriptedServer, collect: Collect) -> None:
    server.play(*[pause(0.4), heartbeat()] * 4, answer("late", finish="stop", final=True))
    assert Result.join(collect(server.url, idle_timeout_s=1.5, prompt="Hi")).text == "late"


def test_a_slow_reader_is_no_silence(server: ScriptedServer) -> None:
    server.play(answer("a"), answer("b", finish="stop", final=True))
    texts = []
    with Client(server.url, idle_timeout_s=0.5) as client:
        for chunk in client.stream("Hi"):
            texts.append(chunk.text)
            time.sleep(0.7)
    assert texts == ["a", "b"]


def test_no_server_raises_server_unreachable(collect: Collect) -> None:
    with pytest.raises(ServerUnreachable, match=r"cannot reach 127\.0\.0\.1:1: Connection refused"):
        collect("127.0.0.1:1", prompt="Hi")


@pytest.fixture
def deaf_url() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_that_never_answers_raises_idle_timeout(deaf_url: str, collect: Collect) -> None:
    with pytest.raises(IdleTimeout):
        collect(deaf_url, idle_timeout_s=0.3, prompt="Hi")


@pytest.fixture
def doomed_server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, in the midst of a generation without end."""
    process = subprocess.Popen([sys.executable, scripted_server.__file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_server_killed_in_mid_stream_raises_server_unreachable(
    doomed_server: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = doomed_server
    with Client(url) as client:
        chunks = client.stream("Hi")
        assert next(chunks).text == "Once"
        process.kill()
        with pytest.raises(ServerUnreachable, match=f"lost the connection to {url}"):
            next(chunks)


def test_the_async_client_notices_a_killed_server(doomed_server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = doomed_server

    async def run() -> None:
        async with AsyncClient(url) as client:
            async for _ in client.stream("Hi"):
                process.kill()

    with pytest.raises(ServerUnreachable, match=f"lost the connection to {url}"):
        asyncio.run(run())


def test_break_cancels(server: ScriptedServer) -> None:
    server.play(answer("a"), hang())
    with Client(server.url) as client:
        for _ in client.stream("Hi"):
            break
        assert server.cancelled.wait(CANCEL_WAIT_S)


def test_an_exception_in_the_loop_cancels(server: ScriptedServer) -> None:
    server.play(answer("a"), hang())
    with Client(server.url) as client:
        with pytest.raises(ZeroDivisionError):
            next(1 / len(chunk.token_ids) for chunk in client.stream("Hi"))
        assert server.cancelled.wait(CANCEL_WAIT_S)


def test_closing_an_async_stream_cancels(server: ScriptedServer) -> None:
    server.play(answer("a"), hang())

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            async with contextlib.aclosing(client.stream("Hi")) as chunks:
                async for _ in chunks:
                    break
            assert await asyncio.to_thread(server.cancelled.wait, CANCEL_WAIT_S)

    asyncio.run(run())


def test_cancelling_the_task_cancels_before_the_first_token(server: ScriptedServer) -> None:
    server.play(hang())

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.generate("Hi"))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.cancelled.wait, CANCEL_WAIT_S)

    asyncio.run(run())


def test_cancelling_leaves_no_thread_behind(server: ScriptedServer) -> None:
    server.play(answer("a"), hang())
    before = set(threading.enumerate())
    with Client(server.url) as client:
        for _ in range(5):
            for _ in client.stream("Hi"):
                break

    def left() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - before if "ThreadPool" not in t.name]

    deadline = time.monotonic() + CANCEL_WAIT_S
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left() == []


def test_one_client_runs_many_requests_at_once(server: ScriptedServer) -> None:
    server.play(answer("a"), pause(0.1), answer("b", finish="stop", final=True))

    async def run() -> list[str]:
        async with AsyncClient(server.url) as client:
            results = await asyncio.gather(*(client.generate("Hi") for _ in range(6)))
        return [result.text for result in results]

    assert asyncio.run(run()) == ["ab"] * 6


def status_blocking(url: str, idle_timeout_s: float = 10.0) -> Any:
    with Client(url, idle_timeout_s=idle_timeout_s) as client:
        return client.status()


def status_async(url: str, idle_timeout_s: float = 10.0) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, idle_timeout_s=idle_timeout_s) as client:
            return await client.status()

    return asyncio.run(run())


@pytest.mark.parametrize("status", [status_blocking, status_async])
class TestStatus:
    def test_of_a_ready_server(self, server: ScriptedServer, status: Callable[..., Any]) -> None:
        server.info = {"manifest": {"precision": "int8"}, "limits": {"max_batch_size": 4}, "stats": {"active": 1}}
        found = status(server.url)
        assert found.ready
        assert (found.manifest, found.limits, found.stats) == tuple(server.info.values())

    def test_of_a_server_that_is_loading(self, server: ScriptedServer, status: Callable[..., Any]) -> None:
        server.ready = False
        assert not status(server.url).ready

    def test_of_a_server_without_the_model(self, server: ScriptedServer, status: Callable[..., Any]) -> None:
        server.info = "Request for unknown model: 'engine_info' is not found"
        with pytest.raises(ServerError, match="engine_info") as raised:
            status(server.url)
        assert raised.value.code == "NOT_FOUND"

    def test_of_a_server_that_answers_nonsense(self, server: ScriptedServer, status: Callable[..., Any]) -> None:
        server.info = ["not an object"]
        with pytest.raises(ProtocolError, match="JSON object"):
            status(server.url)

    def test_of_a_port_that_never_answers(self, deaf_url: str, status: Callable[..., Any]) -> None:
        with pytest.raises(IdleTimeout, match="did not answer in time"):
            status(deaf_url, idle_timeout_s=0.3)

    def test_of_no_server(self, status: Callable[..., Any]) -> None:
        with pytest.raises(ServerUnreachable):
            status("127.0.0.1:1")
