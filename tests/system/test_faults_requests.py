"""What clients do to a server, by accident or on purpose: only they notice, and nothing of theirs stays.

Beside each fault other streams run, which must come out byte for byte as if they were alone.
"""

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpc
from fault_table import Fault
from known_stream import KnownStream, prompt
from scrape import Scrape
from supervised_server import PATIENCE_S, SupervisedServer
from system_server import idle

from mixtral_client import AsyncClient, GenerationOptions
from mixtral_serving.server.installation import unsupported_platform

SUPERVISION = {"canary_interval_s": 2.0, "canary_timeout_s": 20.0}
ENGINE = {"step_s": 0.05, "prefill_token_s": 0.0005}
CLIENTS = 200
CANCELS = 1000
AT_ONCE = 100
HELD = (
    *("requests_running", "requests_waiting", "streams_live", "kv_cache_blocks_used"),
    *("detokenizer_streams", "detokenizer_stopping"),
)

MANY_STREAMS = """
import asyncio, sys
from mixtral_client import AsyncClient, GenerationOptions

async def stream(client, number, started):
    options = GenerationOptions(max_tokens=10000, ignore_eos=True)
    async for chunk in client.stream(input_ids=[1, 300 + number, 300], options=options):
        started.release()

async def main(url, streams):
    started = asyncio.Semaphore(0)
    async with AsyncClient(url) as client:
        tasks = [asyncio.create_task(stream(client, number, started)) for number in range(streams)]
        for _ in range(2 * streams):
            await started.acquire()
        print("streaming", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    with SupervisedServer(tmp_path_factory.mktemp("requests"), ENGINE, SUPERVISION) as server:
        yield server
        assert server.health("ready") == {"ok": True, "reasons": [], "restarts": 0}


@pytest.fixture
def others(supervised: SupervisedServer) -> Iterator[list[KnownStream]]:
    """Streams of clients who do nothing wrong, while a test does."""
    streams = [supervised.stream(number, 40) for number in range(4)]
    yield streams
    for stream in streams:
        stream.check_whole()
    check_rest(supervised)


def check_rest(supervised: SupervisedServer) -> None:
    """All slots, blocks and tables are empty again, in the engine and in the models around it."""
    supervised.server.wait_for_stats(idle, PATIENCE_S)
    url = f"http://127.0.0.1:{supervised.address.metrics_port}/metrics"
    supervised.wait_until(lambda: not any(Scrape.read(url).value(f"mixtral_{name}") for name in HELD))


def tokens_made(supervised: SupervisedServer) -> int:
    return int(supervised.server.info()["stats"]["output_tokens"])


def test_a_client_with_200_streams_is_killed(supervised: SupervisedServer, others: list[KnownStream]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", MANY_STREAMS, supervised.server.grpc_url, str(CLIENTS)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"streaming\n"
    assert supervised.server.info()["stats"]["active"] >= CLIENTS
    fault = Fault(f"client with {CLIENTS} streams killed")
    child.kill()
    child.wait()
    supervised.server.wait_for_stats(lambda stats: stats["active"] < CLIENTS // 2, PATIENCE_S)
    for stream in others:
        stream.check_whole()
    supervised.server.wait_for_stats(idle, PATIENCE_S)
    fault.record([], "nothing of others; slots and blocks are free again")


def test_a_thousand_cancels_at_random_moments(supervised: SupervisedServer, others: list[KnownStream]) -> None:
    """Before the first token, while it waits, while it runs and as it ends."""
    moments = random.Random(6)

    async def cancelled(client: AsyncClient, number: int) -> None:
        options = GenerationOptions(max_tokens=15, ignore_eos=True, stream=number % 4 > 0)
        chunks = client.stream(input_ids=prompt(number % 500), options=options)
        task = asyncio.ensure_future(anext(chunks))
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(moments.expovariate(4.0)):
                await task
                async for _ in chunks:
                    pass
        await chunks.aclose()

    async def all_of_them() -> None:
        async with AsyncClient(supervised.server.grpc_url) as client:
            for first in range(0, CANCELS, AT_ONCE):
                await asyncio.gather(*(cancelled(client, first + number) for number in range(AT_ONCE)))

    fault = Fault(f"{CANCELS} cancels at random moments")
    asyncio.run(all_of_them())
    check_rest(supervised)
    finished = supervised.server.info()["stats"]["finished"]
    assert finished["cancelled"] > CANCELS / 4
    assert finished["error"] == 0
    fault.record([], "nothing of others; slots, blocks and tables are empty again")


@pytest.mark.parametrize("way", ["close", "reset"])
def test_an_http_client_hangs_up(supervised: SupervisedServer, way: str) -> None:
    before = tokens_made(supervised)
    body = b'{"text_input": "Once", "max_tokens": 10000, "ignore_eos": true, "stream": true}'
    head = f"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", supervised.address.http_port)) as client:
        client.sendall(head.encode() + body)
        received = b""
        while received.count(b"data:") < 3:
            received += client.recv(4096)
        if way == "reset":  # a connection that is closed with this set is reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    check_rest(supervised)
    assert tokens_made(supervised) - before < 5000


def test_a_cancel_during_a_long_prefill_is_seen_before_the_first_token(supervised: SupervisedServer) -> None:
    """There is no token on which it could be seen: a heartbeat shows it."""
    before = supervised.server.info()["stats"]
    stream = supervised.server.open(input_ids=[400] * 16000, max_tokens=10, stream=True)
    supervised.server.wait_for_stats(lambda stats: stats["active"] == 1)
    stream.cancel()
    check_rest(supervised)
    after = supervised.server.info()["stats"]
    assert after["finished"]["cancelled"] == before["finished"]["cancelled"] + 1
    assert after["prompt_tokens"] - before["prompt_tokens"] < 16000


def test_ctrl_c_ends_the_command_and_its_request(supervised: SupervisedServer) -> None:
    command = [sys.executable, "-m", "mixtral_client", "stream", "Once", "--max-tokens", "10000", "--ignore-eos"]
    child = subprocess.Popen([*command, "--url", supervised.server.grpc_url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    assert child.wait(PATIENCE_S) == 130
    check_rest(supervised)


def raw(name: str, datatype: str, shape: list[int], content: bytes) -> grpc.InferInput:
    tensor = grpc.InferInput(name, shape, datatype)
    tensor._raw_content = content
    return tensor


def max_tokens() -> grpc.InferInput:
    return raw("max_tokens", "INT32", [1, 1], np.int32(5).tobytes())


MALFORMED = {
    "more bytes promised than there are": raw("text_input", "BYTES", [1, 1], b"\xff\xff\xff\x7fab"),
    "less bytes than the shape needs": raw("input_ids", "INT32", [1, 8], b"\0" * 5),
    "another type": raw("input_ids", "FP64", [1, 2], b"\0" * 16),
    "another rank": raw("text_input", "BYTES", [1, 1, 1], b"\1\0\0\0a"),
    "a negative shape": raw("input_ids", "INT32", [1, -4], b"\0" * 16),
    "a batch of 1000": raw("input_ids", "INT32", [1000, 1], b"\0" * 4000),
    "a name that nobody knows": raw("surprise", "INT32", [1, 1], b"\0" * 4),
    "two million tokens": raw("input_ids", "INT32", [1, 2_000_000], b"\1\0\0\0" * 2_000_000),
    "8 MB of text": raw("text_input", "BYTES", [1, 1], (8_000_000).to_bytes(4, "little") + b"word " * 1_600_000),
    "a stop string of 4 MB": raw("stop_words", "BYTES", [1, 1], (4_000_000).to_bytes(4, "little") + b"x" * 4_000_000),
}


def test_malformed_and_oversize_tensors(supervised: SupervisedServer, others: list[KnownStream]) -> None:
    fault = Fault(f"{len(MALFORMED)} malformed and oversize tensors")
    for what, tensor in MALFORMED.items():
        client = grpc.InferenceServerClient(supervised.server.grpc_url)
        with pytest.raises(grpc.InferenceServerException) as refused:
            client.infer("unary", [tensor, max_tokens()], client_timeout=PATIENCE_S)
        assert "Deadline" not in str(refused.value), what
        client.close()
    for stream in others:
        stream.check_whole()
    fault.record([], "those requests, each with an error that says why")
