"""Random requests to every tensor of every model, over gRPC and HTTP, in batches at the same time.

No crash, no hang, every reply a result or one clean error, and whoever asks something sound afterwards gets the same
answer as before. `make fuzz` does it for longer, with other requests each time (MIXTRAL_FUZZ_S: seconds).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fuzz_calls import send
from fuzz_cases import cases
from fuzz_requests import Case, WireTensor, models
from fuzz_verdict import fault
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scrape import Scrape
from system_server import Server, free_address, idle

from mixtral_client import AsyncClient, Client, GenerationOptions
from mixtral_client.errors import InvalidArgument
from mixtral_runtime.errors import MixtralError
from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test
from mixtral_serving.stream_chunk import ChunkExtras, pack_chunk, unpack_chunk

ROOT = Path(__file__).resolve().parents[2]
BUDGET_S = float(os.environ.get("MIXTRAL_FUZZ_S", "20"))
AT_ONCE = 6
HELD = (
    "requests_running",
    "requests_waiting",
    "streams_live",
    "kv_cache_blocks_used",
    "detokenizer_streams",
    "detokenizer_stopping",
)


class Target:
    """The fuzzed server, with what is remembered of it while it was well."""

    def __init__(self, process: ServerProcess) -> None:
        assert process.process is not None
        self.server = Server(process.address)
        self._parent = psutil.Process(process.process.pid)
        self._stubs = self.stubs()
        self._answer = self.ask()

    def stubs(self) -> list[int]:
        """Process ids of the models that live."""
        children = self._parent.children() if self._parent.is_running() else []
        return sorted(child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE)

    def descriptors(self) -> int:
        return int(self._parent.num_fds())

    def ask(self) -> str:
        return self.server.ask(text_input="Once upon a time", max_tokens=6, ignore_eos=True, stream=True).text

    def check(self, sent: list[Case]) -> None:
        assert self.stubs() == self._stubs, f"a process died of one of {sent}"
        assert self.ask() == self._answer, f"others get another answer after {sent}"

    def check_rest(self) -> None:
        """Nothing is held when nothing is asked."""
        self.server.wait_for_stats(idle)
        deadline = time.monotonic() + 20
        while True:
            scrape = Scrape.read(f"http://127.0.0.1:{self.server.address.metrics_port}/metrics")
            held = {name: value for name in HELD if (value := scrape.value(f"mixtral_{name}"))}
            if not held:
                return
            assert time.monotonic() < deadline, held
            time.sleep(0.1)


@pytest.fixture(scope="module")
def target(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server of its own: whatever happens to it, the other tests keep theirs."""
    if reason := unsupported_platform():
        pytest.skip(reason)
    log_path = tmp_path_factory.mktemp("fuzz") / "log"
    with (
        log_path.open("w") as log,
        ServerProcess(ROOT / "model_repository", engine_dir, free_address(), log=log) as process,
    ):
        process.wait_until_ready(120)
        self_test(process.address)
        yield Target(process)


def test_no_request_harms_the_server_or_others(target: Target) -> None:
    end = time.monotonic() + BUDGET_S
    opened: set[int] = set()

    def try_all(batch: list[Case]) -> None:
        opened.update(streams_of(batch))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda case: send(target.server, case), batch))
        for case, reply in zip(batch, replies, strict=True):
            wrong = fault(case, reply)
            assert wrong is None, f"{wrong}\n{case}\n{reply}"
        target.check(batch)

    # First each tensor once, whatever the budget, then whatever comes.
    tensors = [(model.name, name) for model in models().values() for name in model.inputs]
    for at in range(0, len(tensors), AT_ONCE):
        run_fuzz(
            st.tuples(*(cases(must=must) for must in tensors[at : at + AT_ONCE])), 2, lambda batch: try_all([*batch])
        )
    mixed = st.lists(cases(), min_size=AT_ONCE, max_size=AT_ONCE)
    run_fuzz(mixed, int(BUDGET_S) * 20, lambda batch: try_all(batch) if time.monotonic() < end else None)

    for stream_id in opened:
        assert send(target.server, end_of_stream(stream_id)) is not None
    target.check_rest()


def run_fuzz(batches: st.SearchStrategy[Any], count: int, act: Callable[[Any], None]) -> None:
    @settings(
        max_examples=max(count, 1),
        derandomize="MIXTRAL_FUZZ_S" not in os.environ,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a crash cannot be tried again on the same server
        suppress_health_check=list(HealthCheck),
    )
    @given(batches)
    def each(batch: Any) -> None:
        act(batch)

    each()


def test_clients_that_were_refused_leave_no_connection_behind(target: Target) -> None:
    """A client that cancels its stream after an error makes this Triton keep the connection for ever."""
    options = GenerationOptions(max_tokens=0)

    async def ask_in_vain() -> None:
        async with AsyncClient(target.server.grpc_url) as client:
            asked = [client.generate("Once", options=options) for _ in range(40)]
            refused = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(error, InvalidArgument) for error in refused)

    asyncio.run(ask_in_vain())
    before = target.descriptors()
    for _ in range(8):
        asyncio.run(ask_in_vain())
        with Client(target.server.grpc_url) as client, pytest.raises(InvalidArgument):
            client.generate("Once", options=options)
    deadline = time.monotonic() + 20
    while target.descriptors() > before:
        assert time.monotonic() < deadline, f"{target.descriptors()} descriptors, {before} before"
        time.sleep(0.2)


def streams_of(batch: list[Case]) -> set[int]:
    """Streams that a direct call of `postprocessing` may have begun: whoever begins one there has to end it."""
    found = set()
    for tensor in (tensor for case in batch for tensor in case.tensors):
        raw = tensor.to_bytes()
        if tensor.name == "STREAM_CHUNK" and len(raw) % 4 == 0:
            with contextlib.suppress(MixtralError):
                found.add(unpack_chunk(np.frombuffer(raw, np.int32))[0])
    return found


def end_of_stream(stream_id: int) -> Case:
    chunk = pack_chunk(stream_id, [], ChunkExtras(finish_reason="length"))
    tensor = WireTensor("STREAM_CHUNK", "INT32", chunk.shape, tuple(chunk.reshape(-1).tolist()))
    return Case("unary", "postprocessing", (tensor,))
