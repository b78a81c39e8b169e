"""Our PyTorch engine without a server: requests go in and tokens come out through the engine seam, as in the server."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from peers.interface import Prompt, Settings, Trace

from mixtral_runtime.engine import Request
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.open_engine import open_engine

POLL_S = 5.0


def describe_engine(precision: str, threads: int) -> dict[str, Any]:
    """Of our engine, whole or its parts: as `Peer.describe`."""
    return {
        "versions": {name: version(name) for name in ("mixtral-triton", "torch")},
        "weights": precision,
        "threads": threads,
        "kernels": cpu_path(),
    }


class OurEngine:
    """`settings.weights` is its engine directory."""

    def __init__(self, settings: Settings) -> None:
        assert settings.weights is not None
        torch.set_num_threads(settings.threads)
        self._precision = Manifest.load(settings.weights).precision
        self._engine = open_engine(settings.weights, device="cpu")
        self._threads = settings.threads

    def describe(self) -> dict[str, Any]:
        return describe_engine(self._precision, self._threads)

    def generate(self, prompts: Sequence[Prompt], output_tokens: int) -> Trace:
        trace = Trace.start(time.perf_counter(), len(prompts))
        ids = {
            self._engine.submit(Request(list(prompt), output_tokens, end_id=None)): sequence
            for sequence, prompt in enumerate(prompts)
        }
        while ids:
            outputs = self._engine.poll(POLL_S)
            now = time.perf_counter()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                trace.add(ids[output.id], output.token_ids, now)
                if output.final:
                    del ids[output.id]
        return trace

    def close(self) -> None:
        self._engine.close()


def open_peer(settings: Settings) -> OurEngine:
    return OurEngine(settings)
