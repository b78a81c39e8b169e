"""The synthetic engine behind a real Triton server, for benchmarks and tests."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

from make_engine import LIMITS, PLUGIN_FOLDER, make_engine

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.injection import PLUGIN_PATH
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

REPOSITORY = PLUGIN_FOLDER.parents[1] / "model_repository"
READY_S = 120.0


@contextlib.contextmanager
def synthetic_server(
    engine_dir: Path,
    settings: Mapping[str, Any],
    limits: EngineLimits = LIMITS,
    *,
    config: Path | None = None,
    log: IO[str] = sys.stderr,
    verbose: bool = False,
) -> Iterator[ServerProcess]:
    """Writes the engine directory, starts a server for it on free ports of the loopback address, waits until it
    answers, and stops it in the end. settings: as in `synthetic.json`. The server's own warm-up is request 1 and step 1
    of the engine. Raises MixtralError when the server does not come up."""
    make_engine(engine_dir, settings, limits)
    server = ServerProcess(REPOSITORY, engine_dir, free_address(), config, log=log, verbose=verbose)
    folders = os.pathsep.join(filter(None, [str(PLUGIN_FOLDER), os.environ.get(PLUGIN_PATH)]))
    # The server inherits the environment when it starts; nothing else here reads this variable.
    with patch.dict(os.environ, {PLUGIN_PATH: folders}), server:
        server.wait_until_ready(READY_S)
        self_test(server.address)
        yield server
