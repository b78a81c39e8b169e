"""The real Triton server of the system tests, on the int8 engine of the demo model: fixtures for a conftest.py."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from system_server import Server, free_address

from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(sys.executable).parent / "mixtral-build"


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """The demo model's int8 engine, built with the commands a user would run."""
    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([BUILD, "quantize", demo_model, folder / "checkpoint", "--precision", "int8"], check=True)
    subprocess.run([BUILD, "engine", folder / "checkpoint", folder / "int8", "--runtime", "pytorch"], check=True)
    return folder / "int8"


@contextmanager
def triton_server(engine_dir: Path, folder: Path, config: Path | None = None) -> Iterator[Server]:
    """A Triton of its own on an engine, when it answers; its log is in `folder`, and shown when it does not."""
    address, log_path = free_address(), folder / "log"
    with (
        log_path.open("w") as log,
        ServerProcess(ROOT / "model_repository", engine_dir, address, config, log=log, verbose=True) as process,
    ):
        try:
            process.wait_until_ready(120)
            self_test(address)
        except Exception:
            print(log_path.read_text(errors="replace")[-5000:])
            raise
        yield Server(address)


@pytest.fixture(scope="session")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    with triton_server(engine_dir, tmp_path_factory.mktemp("server")) as server:
        yield server
