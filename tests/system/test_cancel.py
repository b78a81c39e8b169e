"""A client that cancels, leaves or is killed frees its slot and blocks within a few steps, through the ensemble."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from system_server import Server, Stream, idle

STORY = "Once upon a time"

LONG: dict[str, Any] = {"text_input": STORY, "max_tokens": 1500, "ignore_eos": True, "stream": True}

CHILD = """
import sys, time
from system_server import Stream
Stream(sys.argv[1], "ensemble", {"text_input": "Once upon a time", "max_tokens": 1500, "ignore_eos": True,
                                 "stream": True}).next()
print("streaming", flush=True)
time.sleep(600)
"""


def read_some(stream: Stream, count: int) -> None:
    for _ in range(count):
        _, error = stream.next()
        assert error is None


def steps_until_idle(server: Server, generated_before: int) -> int:
    return int(server.wait_for_stats(idle)["output_tokens"]) - generated_before


def test_cancel_stops_the_engine(server: Server) -> None:
    stream = server.open(**LONG)
    read_some(stream, 5)
    before = server.info()["stats"]
    assert before["active"] == 1
    stream.cancel()
    # Far below the 1,500 that were asked for: a few steps, and those that pass while it is being measured.
    assert steps_until_idle(server, before["output_tokens"]) < 500
    assert server.info()["stats"]["finished"]["cancelled"] >= 1


def test_a_killed_client_frees_its_slot(server: Server) -> None:
    path = os.pathsep.join(sys.path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.grpc_url], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"streaming\n"
    before = server.info()["stats"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert steps_until_idle(server, before["output_tokens"]) < 500


def test_cancel_among_many_leaves_the_others_alone(server: Server) -> None:
    kept = [server.open(**(LONG | {"max_tokens": 80})) for _ in range(4)]
    dropped = [server.open(**LONG) for _ in range(4)]
    for stream in dropped:
        read_some(stream, 2)
        stream.cancel()
    texts = {stream.finish().text for stream in kept}
    assert len(texts) == 1
    assert texts == {server.ask(**(LONG | {"max_tokens": 80, "stream": False})).text}
    server.wait_for_stats(idle)


def test_cancel_while_waiting_for_a_slot(server: Server) -> None:
    limit = server.info()["limits"]["max_batch_size"]
    running = [server.open(**LONG) for _ in range(limit)]
    for stream in running:
        read_some(stream, 1)
    waiting = server.open(**LONG)
    server.wait_for_stats(lambda stats: stats["queued"] >= 1)
    waiting.cancel()
    server.wait_for_stats(lambda stats: stats["queued"] == 0)  # seen on a heartbeat, before any token
    for stream in running:
        stream.cancel()
    server.wait_for_stats(idle)


def test_nvidias_stop_request_ends_the_stream(server: Server) -> None:
    stream = server.open(request_id="my-request", **LONG)
    read_some(stream, 3)
    stop = server.ask(
        model="tensorrt_llm", request_id="my-request", stop=True, input_ids=[1], input_lengths=1, request_output_len=1
    )
    assert stop.error is None
    answer = stream.finish()
    assert answer.error is None
    assert answer.values("finish_reason") == [b"cancelled"]
    server.wait_for_stats(idle)


def test_a_deadline_ends_requests_with_and_without_streaming(server: Server) -> None:
    for streaming in (True, False):
        begun = time.monotonic()
        answer = server.ask(**(LONG | {"stream": streaming, "timeout_ms": 300}))
        assert answer.values("finish_reason") == [b"timeout"]
        assert time.monotonic() - begun < 30
    server.wait_for_stats(idle)
