"""A client that leaves cancels the generation; a gateway that stops lets requests end, for a while."""

import asyncio
import gc
import socket
import time
from typing import Any

import httpx
import pytest
from gateway_thread import RunningGateway
from scripted_server import ScriptedServer, answer, hang

from mixtral_gateway.connection import Connection

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def wait_for_status(gateway: RunningGateway, status: int) -> None:
    deadline = time.monotonic() + 20
    while not any(record["status"] == status for record in gateway.records()):
        assert time.monotonic() < deadline, gateway.log.getvalue()
        time.sleep(0.02)


@pytest.mark.parametrize("choices", [1, 3])
def test_leaving_a_stream_cancels_it(gateway: RunningGateway, triton: ScriptedServer, choices: int) -> None:
    triton.play(answer("Once"), hang())
    body = CHAT | {"stream": True, "n": choices}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as streamed:
        next(streamed.iter_lines())
    assert triton.cancelled.wait(20)
    wait_for_status(gateway, 499)


@pytest.mark.parametrize("first", [[], [answer("Once")]])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_anything_was_answered_cancels_it(
    gateway: RunningGateway, triton: ScriptedServer, stream: bool, first: list[Any]
) -> None:
    triton.play(*([] if stream else first), hang())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT | {"stream": stream}, timeout=1.5)
    assert triton.cancelled.wait(20)
    wait_for_status(gateway, 499)


def unfinished_tasks() -> int:
    return sum(issubclass(type(one), asyncio.Task) and not one.done() for one in gc.get_objects())


def test_departed_clients_leave_no_task(gateway: RunningGateway, triton: ScriptedServer) -> None:
    triton.play(answer("Once"), hang())

    def leave(body: dict[str, Any]) -> None:
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as streamed:
            next(streamed.iter_lines())

    leave(CHAT | {"stream": True})
    wait_for_status(gateway, 499)
    before = unfinished_tasks()
    for choices in (1, 2, 5) * 5:
        leave(CHAT | {"stream": True, "n": choices})
    deadline = time.monotonic() + 20
    while (left := unfinished_tasks()) > before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_connection_that_breaks_off_in_its_body_is_let_go(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 999\r\n\r\n{"model":'
        )
    wait_for_status(gateway, 499)


def test_a_long_header_is_refused_however_it_arrives(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    request = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Filler: " + b"a" * 70_000 + b"\r\n\r\n"
    for size in (10_000, len(request)):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            for start in range(0, len(request), size):
                connection.sendall(request[start : start + size])
            assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost:", b"GET /live HTTP/1.1\r\nHost: x\r\n\r\nGET"])
def test_a_connection_that_never_ends_its_headers_is_closed(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """The last one has had an answer before."""
    monkeypatch.setattr(Connection, "headers_s", 0.5)
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(said)
        while connection.recv(1000):
            pass
        connection.settimeout(0)
        assert connection.recv(1) == b""


def test_endless_headers_are_refused(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Filler: " + b"a" * 70_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
