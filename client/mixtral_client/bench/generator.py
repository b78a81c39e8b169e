"""A process that generates load: it gets shares of points from a pipe, works on them, and reports as it goes."""

import asyncio
import contextlib
import gc
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

import grpc
from tritonclient.grpc import service_pb2_grpc

from mixtral_client.bench.exchange import Target
from mixtral_client.bench.share import Assignment, Share
from mixtral_client.connection import open_channel

_REPORT_S = 0.25


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends the point: nothing more is sent, what is running is cut off."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has started; a point may begin."""


def main(pipe: Pipe, target: Target) -> None:
    """The process: works on assignments from the pipe until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what to do
    gc.freeze()  # what was imported needs no more looking at
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        asyncio.run(_serve(pipe, target))


async def _serve(pipe: Pipe, target: Target) -> None:
    loop = asyncio.get_running_loop()
    shares: asyncio.Queue[Share | None] = asyncio.Queue()
    latest: Share | None = None
    async with open_channel(grpc.aio, target.url, target.tls) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def receive() -> None:
            nonlocal latest
            try:
                command: Assignment | Stop | None = pipe.recv()
            except (EOFError, OSError):
                loop.remove_reader(pipe.fileno())
                command = None
            if isinstance(command, Assignment):
                latest = Share(command, stub, target)
                shares.put_nowait(latest)
                return
            if latest is not None:
                latest.stop()  # also one that has not begun yet
            if command is None:
                shares.put_nowait(None)

        loop.add_reader(pipe.fileno(), receive)
        pipe.send(Ready())
        while (share := await shares.get()) is not None:
            running = asyncio.create_task(share.run())
            while not running.done():
                await asyncio.wait([running], timeout=_REPORT_S)
                pipe.send(share.report())
            pipe.send(running.result())
