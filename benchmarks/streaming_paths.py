"""The ways from the engine to a client that are compared, and the server each of them needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
from make_engine import MODEL, PLUGIN_FOLDER, make_engine
from streaming_load import Prompt, engine_request, ensemble_request, nvidia_request, plain_request
from streaming_nvidia import write_repository
from tritonclient.grpc import service_pb2

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.injection import PLUGIN_PATH
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.stubs import live_stubs

ROOT = Path(__file__).resolve().parent.parent
OURS, PLAIN = ROOT / "model_repository", Path(__file__).resolve().parent / "streaming_plain"
LIMITS = EngineLimits(
    max_batch_size=1024, max_input_len=16384, max_seq_len=32768, max_num_tokens=16384, max_queue_size=1024
)
EMISSIONS = "emissions"


class MakeRequest(Protocol):
    def __call__(self, prompt: Prompt, max_tokens: int, counted: bool = ...) -> service_pb2.ModelInferRequest: ...


@dataclass(frozen=True, slots=True)
class StreamingPath:
    """repository: what its server loads. request: how a client asks on it."""

    name: str
    repository: Path
    request: MakeRequest


def paths(nvidia: Path | None, folder: Path) -> tuple[StreamingPath, ...]:
    """nvidia: the folder of its models, if they are to be compared. folder: for what is written to serve them."""
    found = [
        StreamingPath("engine", OURS, engine_request),
        StreamingPath("ensemble", OURS, ensemble_request),
        StreamingPath("plain ensemble", PLAIN, plain_request),
    ]
    if nvidia is not None:
        repository = folder / "nvidia"
        write_repository(nvidia, PLAIN / "tensorrt_llm" / "1" / "model.py", MODEL, repository)
        found.append(StreamingPath("nvidia", repository, nvidia_request))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Running:
    """A server under measurement. names: of its process and of its models' stubs, by process id."""

    port: int
    emissions: Path
    names: dict[int, str]

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, by process."""
        spent: dict[str, float] = {}
        for pid, name in self.names.items():
            spent[name] = spent.get(name, 0.0) + sum(psutil.Process(pid).cpu_times()[:2])
        return spent


@contextmanager
def serve(repository: Path, step_s: float, folder: Path) -> Iterator[Running]:
    """A real Triton server with the synthetic engine at `step_s` seconds a step. folder: for engine and log."""
    engine_dir = folder / "engine"
    make_engine(engine_dir, {"step_s": step_s, "emissions": EMISSIONS}, LIMITS)
    os.environ[PLUGIN_PATH] = str(PLUGIN_FOLDER)
    address = free_address()
    with (folder / "log").open("w") as log, ServerProcess(repository, engine_dir, address, log=log) as server:
        server.wait_until_ready(120)
        names = {server.pid: "server"} | live_stubs(server.pid)
        yield Running(address.grpc_port, engine_dir / EMISSIONS, names)
