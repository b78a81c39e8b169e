"""What the OpenAI gateway adds to Triton's own gRPC, on the synthetic engine: time to first token, tokens/s, and the
gateway's processor time for each chunk that it passes on.

Paced streams (a step every 20 ms) show the added time to first token; unpaced ones the highest throughput. The server,
the gateway and the load share this machine, so the throughputs are shares of it and not of a server alone.

PYTHONPATH=benchmarks:benchmarks/synthetic python benchmarks/gateway.py
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil
from machine import describe, slug
from make_engine import LIMITS
from synthetic_server import synthetic_server
from synthetic_tokens import FIRST_TOKEN

from mixtral_client import AsyncClient, GenerationOptions

RESULTS = Path(__file__).parent / "results"
LOADS = ((1, 0.02, 20), (64, 0.05, 100), (256, 0.2, 25))  # streams, seconds of a step, tokens of a stream
PACED_ROUNDS = 40  # of one stream after the other, for a median
One = Callable[[int, int], Awaitable[float]]  # number, tokens -> seconds to the first token


def prompt(number: int) -> list[int]:
    return [1, FIRST_TOKEN + number, FIRST_TOKEN]


def direct(client: AsyncClient) -> One:
    async def one(number: int, tokens: int) -> float:
        begun, first = time.perf_counter(), 0.0
        options = GenerationOptions(max_tokens=tokens, ignore_eos=True)
        usage = None
        async for chunk in client.stream(input_ids=prompt(number), options=options):
            first, usage = first or time.perf_counter() - begun, chunk.usage
        assert usage is not None
        assert usage.num_output_tokens == tokens
        return first

    return one


def through(port: int) -> One:
    """A plain reader of the events: an OpenAI client would cost more than the gateway."""

    async def one(number: int, tokens: int) -> float:
        body = {
            "model": "mixtral", "prompt": prompt(number), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json"
        begun, first, tail = time.perf_counter(), 0.0, b""
        writer.write(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        while part := await reader.read(65536):
            if not first and b"data: " in part:
                first = time.perf_counter() - begun
            tail = (tail + part)[-1000:]
        writer.close()
        counted = re.search(rb'"completion_tokens":(\d+)', tail)
        assert counted is not None, tail
        assert int(counted[1]) == tokens
        return first

    return one


async def measure(one: One, streams: int, tokens: int) -> dict[str, float]:
    rounds = PACED_ROUNDS if streams == 1 else 1
    firsts: list[float] = []
    begun = time.perf_counter()
    for _ in range(rounds):
        firsts += await asyncio.gather(*(one(number, tokens) for number in range(streams)))
    elapsed = time.perf_counter() - begun
    return {"ttft_p50_s": statistics.median(firsts), "tokens_per_s": rounds * streams * tokens / elapsed}


def chunks_read(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        found = re.search(r"^mixtral_gateway_events_total (\S+)$", page.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def compare(triton: str, port: int, gateway: psutil.Process, streams: int, tokens: int) -> dict[str, Any]:
    async with AsyncClient(triton) as client:
        await measure(direct(client), streams, 5)
        plain = await measure(direct(client), streams, tokens)
    await measure(through(port), streams, 5)
    before, chunks = gateway.cpu_times(), chunks_read(port)
    passed = await measure(through(port), streams, tokens)
    after, chunks = gateway.cpu_times(), chunks_read(port) - chunks
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "direct": plain,
        "gateway": passed,
        "added_ttft_p50_s": passed["ttft_p50_s"] - plain["ttft_p50_s"],
        "throughput_share": passed["tokens_per_s"] / plain["tokens_per_s"],
        "chunks": chunks,
        "cpu_us_per_chunk": cpu_s / chunks * 1e6,
    }


def run_point(streams: int, step_s: float, tokens: int) -> dict[str, Any]:
    limits = replace(LIMITS, max_batch_size=streams)
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as log,
        synthetic_server(Path(folder) / "engine", {"step_s": step_s}, limits, log=log) as server,
    ):
        triton = f"127.0.0.1:{server.address.grpc_port}"
        command = [sys.executable, "-m", "mixtral_gateway", "--triton", triton, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as gateway:
            assert gateway.stdout is not None
            port = int(gateway.stdout.readline().rsplit(":", 1)[1])
            try:
                point = asyncio.run(compare(triton, port, psutil.Process(gateway.pid), streams, tokens))
            finally:
                gateway.terminate()
    return {"streams": streams, "step_s": step_s, "tokens": tokens} | point


@click.command(help=__doc__)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Result file. Default: benchmarks/results/PROCESSOR/gateway.json"
)
def main(out: Path | None) -> None:
    machine = describe(("uvicorn", "starlette", "tritonclient", "grpcio"))
    points = []
    for load in LOADS:
        points.append(run_point(*load))
        click.echo(json.dumps(points[-1]), err=True)
    path = out or RESULTS / slug(str(machine["processor"])) / "gateway.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "points": points}, indent=1) + "\n")
    click.echo(path)


if __name__ == "__main__":
    main()
