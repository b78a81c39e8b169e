"""The demo model quantised, built and served, for the programs that measure it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-mixtral"
_READY_S = 120.0


def call(module: str, *arguments: str | Path) -> dict[str, Any]:
    """What a command of ours prints with `--json`. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def build_engine(folder: Path, precision: str) -> Path:
    """The engine directory, in `folder`, for the PyTorch runtime."""
    checkpoint, engine = folder / f"{precision}-checkpoint", folder / precision
    call("mixtral_build", "quantize", MODEL, checkpoint, "--precision", precision)
    call("mixtral_build", "engine", checkpoint, engine, "--runtime", "pytorch")
    return engine


@contextmanager
def served(engine: Path) -> Iterator[str]:
    """The gRPC address of a server for this engine, with its default settings."""
    with ServerProcess(ROOT / "model_repository", engine, free_address()) as server:
        server.wait_until_ready(_READY_S)
        self_test(server.address)
        yield f"127.0.0.1:{server.address.grpc_port}"
