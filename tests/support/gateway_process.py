"""The gateway as its command starts it, for tests that speak HTTP to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

STOP_S = 30


@dataclass(frozen=True)
class GatewayProcess:
    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


@contextmanager
def gateway_process(
    triton: str, *options: str, port: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """triton: its gRPC address. port 0 takes a free one. Stopped with SIGTERM, then killed if that takes too long."""
    command = [
        sys.executable,
        "-m",
        "mixtral_gateway",
        "--triton",
        triton,
        "--port",
        str(port),
        "--drain",
        "1",
        *options,
    ]
    process = subprocess.Popen(
        command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening: http://"), line
        yield GatewayProcess(line.split()[1], process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
