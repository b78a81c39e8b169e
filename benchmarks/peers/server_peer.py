"""Our own server: int8 weights, Triton, and gRPC streaming by as many requests at once as there are prompts."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers.interface import Prompt, Settings, Trace

from mixtral_client.aio import AsyncClient
from mixtral_client.generation import GenerationOptions
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(sys.executable).parent / "mixtral-build"
READY_S = 600
PACKAGES = ("mixtral-triton", "torch", "nvidia-pytriton", "tritonclient")


class OurServer:
    """Its threads are set by OMP_NUM_THREADS, which it inherits from this process."""

    def __init__(self, settings: Settings) -> None:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context((settings.folder / "server.log").open("w"))
            address = free_address()
            engine = settings.weights or _build(settings)
            server = ServerProcess(ROOT / "model_repository", engine, address, log=log, verbose=True)
            stack.enter_context(server)
            server.wait_until_ready(READY_S)
            self_test(address)
            self._loop = asyncio.new_event_loop()
            self._client = self._loop.run_until_complete(_connect(f"127.0.0.1:{address.grpc_port}"))
            self._threads = settings.threads
            self._stack = stack.pop_all()

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {name: version(name) for name in PACKAGES},
            "weights": "int8, one scale a row; embedding and lm_head in 16 bits",
            "threads": self._threads,
            "transport": "gRPC streaming, one stream a request, text decoded on the server",
        }

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        return self._loop.run_until_complete(self._generate(prompts, output_tokens))

    async def _generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        options = GenerationOptions(max_tokens=output_tokens, ignore_eos=True, return_output_ids=True)
        trace = Trace.start(time.perf_counter(), len(prompts))

        async def one(sequence: int, prompt: Prompt) -> None:
            async for chunk in self._client.stream(input_ids=prompt, options=options):
                trace.add(sequence, chunk.token_ids, time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for sequence, prompt in enumerate(prompts):
                group.create_task(one(sequence, prompt))
        return trace

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()
        self._stack.close()


async def _connect(url: str) -> AsyncClient:
    return AsyncClient(url)  # it belongs to the loop that is running when it is made


def _build(settings: Settings) -> Path:
    checkpoint, engine = settings.folder / "checkpoint", settings.folder / "engine"
    _run("quantize", settings.model, checkpoint, "--precision", "int8")
    limits = ("--max-batch-size", str(settings.max_sequences), "--max-seq-len", str(settings.max_tokens))
    _run("engine", checkpoint, engine, "--runtime", "pytorch", *limits)
    return engine


def _run(*words: str | Path) -> None:
    subprocess.run([BUILD, *words], check=True, capture_output=True)


def open_peer(settings: Settings) -> OurServer:
    return OurServer(settings)
