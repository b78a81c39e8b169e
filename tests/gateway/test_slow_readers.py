"""A reader that lags is waited for, holds up nobody and fills no memory; one that takes nothing counts as gone."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_thread import RunningGateway
from scripted_server import ScriptedServer, Step, answer

from mixtral_gateway.settings import Settings

PIECE = "word " * 3000
PIECES = 4000  # 60 MB, more than all sockets and windows on the way hold


@pytest.fixture
def settings(triton: ScriptedServer) -> Settings:
    return Settings(triton=triton.url, models=("tiny",), idle_timeout_s=1.5)


class Endless:
    """A long answer, and how much of it was made."""

    def __init__(self, pieces: int) -> None:
        self.made = 0
        self._pieces = pieces

    def __call__(self, inputs: dict[str, Any]) -> Any:
        return self._steps()

    def _steps(self) -> Iterator[Step]:
        for _ in range(self._pieces):
            yield answer(PIECE, num_output_tokens=[[1]])
            self.made += 1
        yield answer("", "stop", final=True)


def ask(gateway: RunningGateway) -> socket.socket:
    """A streamed request of which nothing is read yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    host, port = gateway.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 4, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_reader_that_takes_nothing_is_dropped_and_its_generation_cancelled(
    gateway: RunningGateway, triton: ScriptedServer
) -> None:
    endless = Endless(PIECES)
    triton.play_by(endless)
    with ask(gateway):
        assert triton.cancelled.wait(20)
    assert endless.made < PIECES / 2
    deadline = time.monotonic() + 20
    while not any(record["status"] == 499 for record in gateway.records()):
        assert time.monotonic() < deadline, gateway.log.getvalue()
        time.sleep(0.02)


def test_a_slow_reader_gets_all_and_holds_up_nobody(gateway: RunningGateway, triton: ScriptedServer) -> None:
    endless = Endless(1200)
    triton.play_by(endless)
    read = b""
    with ask(gateway) as slow:
        for _ in range(10):  # a part now and then, for longer than the time limit
            read += slow.recv(1_000_000, socket.MSG_WAITALL)
            triton.play(answer("quick", num_output_tokens=[[1]]), answer("", "stop", final=True))
            body = {"model": "tiny", "prompt": "hi", "max_tokens": 4}
            answered = httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=20)
            assert answered.json()["choices"][0]["text"] == "quick"
            time.sleep(0.2)
        assert endless.made < 1200
        while part := slow.recv(1 << 20):
            read += part
    assert read.count(PIECE.encode()) == 1200
    assert read.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
