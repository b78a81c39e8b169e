"""A peer in a process of its own, driven over a pipe."""

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from peers.interface import Peer, PeerUnavailable, Prompt, Settings, Trace

from mixtral_runtime.process_memory import process_memory

MODULES = {
    "server": "peers.server_peer",
    "transformers": "peers.transformers_peer",
    "llama.cpp": "peers.llama_cpp_peer",
    "vllm": "peers.vllm_peer",
}
# These need `Settings.weights`.
PARTS = {"engine": "peers.engine_peer", "steps": "peers.steps_peer", "memory": "peers.memory_peer"}
CLOSE_S = 60


@dataclass(frozen=True, slots=True)
class Usage:
    """ready_s: until it was ready for prompts, its modules imported before. Bytes of its process: anonymous is its
    own and cannot give way, mapped is of files and can; peak is the most that both have had together."""

    ready_s: float
    anonymous_bytes: int
    mapped_bytes: int
    peak_bytes: int

    @classmethod
    def now(cls, ready_s: float) -> "Usage":
        memory = process_memory()
        return cls(ready_s, memory.anonymous, memory.mapped, memory.peak)


class PeerFailed(Exception):
    """The peer raised or its process died; the sentence names the peer."""


class PeerProcess:
    """Raises PeerUnavailable when the peer cannot run here, PeerFailed for every other failure."""

    def __init__(self, name: str, settings: Settings, kind: str | None = None) -> None:
        """kind: of MODULES or PARTS, where it is not the name."""
        self.name = name
        settings.folder.mkdir(exist_ok=True)
        context = multiprocessing.get_context("spawn")  # a fork would copy a running OpenMP runtime
        self._pipe, theirs = context.Pipe()
        # Not a daemon: our server's peer has a child of its own.
        self._process = context.Process(target=_serve, args=((MODULES | PARTS)[kind or name], settings, theirs))
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # read by OpenMP before any code of ours runs
        try:
            self._process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        self.description: dict[str, Any] = self._answer()

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        trace = self._call("generate", prompts, output_tokens)
        assert isinstance(trace, Trace)
        if wrong := [len(got) for got in trace.tokens if len(got) != output_tokens]:
            raise PeerFailed(f"{self.name} generated {wrong[0]} tokens where {output_tokens} were asked for")
        return trace

    def regrets(self, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> list[float]:
        """Of the peer that judges; see `transformers_peer`."""
        regrets: list[float] = self._call("regrets", prompts, outputs)
        return regrets

    def usage(self) -> "Usage":
        usage = self._call("usage")
        assert isinstance(usage, Usage)
        return usage

    def close(self) -> None:
        """Ends the peer, by force when it does not end by itself."""
        self._pipe.close()
        self._process.join(CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            self._pipe.send((method, arguments))
        except OSError:
            self._process.join(CLOSE_S)
            raise PeerFailed(f"{self.name} ended with exit code {self._process.exitcode}") from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(CLOSE_S)
            raise PeerFailed(f"{self.name} ended with exit code {self._process.exitcode}") from None
        if kind == "ok":
            return value
        self.close()
        raise PeerUnavailable(value) if kind == "unavailable" else PeerFailed(f"{self.name} failed:\n{value}")


def _serve(module: str, settings: Settings, pipe: Connection) -> None:
    """Runs in the peer's process until the pipe is closed."""
    try:
        begun = time.perf_counter()
        peer: Peer = importlib.import_module(module).open_peer(settings)
        ready_s = time.perf_counter() - begun
        pipe.send(("ok", peer.describe()))
    except ImportError as error:
        pipe.send(("unavailable", f"{error.name} is not installed"))
        return
    except PeerUnavailable as error:
        pipe.send(("unavailable", str(error)))
        return
    except Exception:
        pipe.send(("failed", traceback.format_exc()))
        return
    try:
        while True:
            method, arguments = pipe.recv()
            try:
                if method == "usage":
                    pipe.send(("ok", Usage.now(ready_s)))
                else:
                    pipe.send(("ok", getattr(peer, method)(*arguments)))
            except Exception:
                pipe.send(("failed", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        peer.close()
