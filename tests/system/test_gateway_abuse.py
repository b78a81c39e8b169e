"""All kinds of abuse at once, at full size, on the real stack: each gets its status, somebody else's streams come byte
for byte as ever, and nothing is left behind."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process
from system_server import Server, idle

KEY = "a-key-of-these-tests"
STORY = "Once upon a time"
ABORTED = 1000
BIG = 10_000_000
ASK: dict[str, Any] = {"model": "mixtral", "prompt": STORY, "temperature": 0, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[GatewayProcess]:
    with gateway_process(server.grpc_url, environment={"MIXTRAL_GATEWAY_API_KEYS": f"tester:{KEY}"}) as running:
        yield running


def head(*, key: str = KEY, kind: str = "application/json", more: str = "") -> str:
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: {kind}\r\n{more}"


def body(content: bytes) -> bytes:
    return f"Content-Length: {len(content)}\r\n\r\n".encode() + content


def filler(count: int) -> str:
    return "".join(f"X-Filler-{number}: {'a' * 50}\r\n" for number in range(count))


ASKED = json.dumps(ASK | {"max_tokens": 1500}).encode()
# What is sent, and the status of the answer.
REFUSED: dict[str, tuple[bytes, int]] = {
    "a wrong key": (head(key="wrong-wrong-wrong-wrong").encode() + body(ASKED), 401),
    "a wrong key before 10 MB": (head(key="wrong").encode() + body(b'{"prompt":"' + b"x" * BIG + b'"}'), 401),
    "a body of 10 MB": (head().encode() + body(b'{"prompt":"' + b"x" * BIG + b'"}'), 413),
    "deep lists": (head().encode() + body(b"[" * 1_000_000), 400),
    "deep objects": (head().encode() + body(b'{"a":' * 300_000), 400),
    "text": (head(kind="text/plain").encode() + body(ASKED), 415),
    "a form": (head(kind="multipart/form-data; boundary=x").encode() + body(ASKED), 415),
    "no JSON": (head().encode() + body(b"{" * 10), 400),
    "a header of 100 kB": (head(more="X-Filler: " + "a" * 100_000 + "\r\n").encode() + body(ASKED), 400),
    "2,000 headers": (head(more=filler(2000)).encode() + body(ASKED), 400),
    "headers without end": (head(more=filler(5000)).encode(), 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n", 400),
    "another method": (head().replace("POST", "DELETE").encode() + body(b""), 405),
}


class Strangers:
    def __init__(self, gateway: GatewayProcess) -> None:
        self._address = ("127.0.0.1", gateway.port)

    def open(self, receive_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(60)
        connection.connect(self._address)
        return connection

    def abort(self, number: int) -> None:
        """Asks for 1,500 tokens and leaves: at once, or with the answer under way."""
        with self.open() as connection:
            connection.sendall(head().encode() + body(ASKED))
            if number % 2:
                connection.recv(10)

    def refused(self, name: str) -> int:
        """The status. The gateway may break the connection off while more is sent."""
        sent, _ = REFUSED[name]
        with self.open() as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(sent)
            answer = connection.recv(100)
        found = re.match(rb"HTTP/1.1 (\d+)", answer)
        assert found, (name, answer)
        return int(found[1])


class Undisturbed(threading.Thread):
    """Somebody who is served again and again meanwhile."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__()
        self._url = f"{gateway.url}/v1/completions"
        self.enough = threading.Event()
        self.texts: list[str] = []

    def once(self) -> str:
        headers = {"Authorization": f"Bearer {KEY}"}
        text = ""
        with httpx.stream("POST", self._url, json=ASK | {"max_tokens": 100}, headers=headers, timeout=120) as streamed:
            for line in streamed.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        return text

    def run(self) -> None:
        while not self.enough.is_set():
            self.texts.append(self.once())


def gauge(gateway: GatewayProcess, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx.get(f"{gateway.url}/metrics", timeout=60).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_abuse_has_no_effect_on_others_and_leaves_nothing_behind(server: Server, gateway: GatewayProcess) -> None:
    strangers, undisturbed = Strangers(gateway), Undisturbed(gateway)
    expected = undisturbed.once()
    assert expected == server.ask(text_input=STORY, max_tokens=100, ignore_eos=True).text
    process = psutil.Process(gateway.process.pid)
    for number in range(40):  # what the first requests allocate is no leak
        strangers.abort(number)
    for name in REFUSED:
        strangers.refused(name)
    server.wait_for_stats(idle, 60)
    files, threads, memory = process.num_fds(), process.num_threads(), process.memory_info().rss

    undisturbed.start()
    try:
        with ExitStack() as slow, ThreadPoolExecutor(16) as pool:
            for _ in range(8):  # they ask, and read nothing
                connection = slow.enter_context(strangers.open(receive_bytes=2048))
                connection.sendall(head().encode() + body(ASKED))
            aborted = [pool.submit(strangers.abort, number) for number in range(ABORTED)]
            statuses = [(name, pool.submit(strangers.refused, name)) for name in REFUSED for _ in range(4)]
            found = {(name, status.result()) for name, status in statuses}
            for one in aborted:
                one.result()
    finally:
        undisturbed.enough.set()
        undisturbed.join(120)

    assert found == {(name, status) for name, (_, status) in REFUSED.items()}
    assert set(undisturbed.texts) == {expected}
    server.wait_for_stats(idle, 60)
    assert gauge(gateway, "mixtral_gateway_running") == 0
    assert undisturbed.once() == expected
    assert process.num_fds() <= files + 2  # a connection kept alive
    assert process.num_threads() <= threads
    assert process.memory_info().rss < memory + 48 * 2**20
