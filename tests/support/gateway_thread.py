"""The gateway in this process, on a real port, for tests that look at its HTTP."""

import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixtral_gateway.access_log import AccessLog
from mixtral_gateway.app import create_app
from mixtral_gateway.server import GatewayServer
from mixtral_gateway.settings import Settings


@dataclass
class RunningGateway:
    """url: without a path. log: what it wrote."""

    url: str
    log: io.StringIO

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextlib.contextmanager
def running_gateway(settings: Settings) -> Iterator[RunningGateway]:
    log = io.StringIO()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = GatewayServer(create_app(settings, AccessLog(log)), "127.0.0.1", port, settings.drain_s)
    thread = threading.Thread(target=lambda: server.run([listening]))
    thread.start()
    try:
        yield RunningGateway(f"http://127.0.0.1:{port}", log)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
