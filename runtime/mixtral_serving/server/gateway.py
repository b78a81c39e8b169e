"""The OpenAI gateway beside a server: a process of its own that is started again when it ends.

It never decides about the server: when it cannot run, that is told and the server goes on without it.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from mixtral_serving.server.command import Address

MODULE = "mixtral_gateway"
LOOPBACK = "127.0.0.1"
CHILD = Path(__file__).parent / "child.py"
STOP_S = 10.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


def why_not(encrypted: bool) -> str | None:
    """Why it cannot be started here. encrypted: gRPC asks for TLS."""
    if importlib.util.find_spec(MODULE) is None or importlib.util.find_spec("uvicorn") is None:
        return "the gateway is not installed (extra `gateway`)"
    if encrypted:
        return "gRPC has TLS; start `mixtral-gateway` with the certificate's authority"
    return None


class GatewayProcess:
    """As a context manager: runs from beginning to end of the block."""

    def __init__(self, address: Address, bind: tuple[str, int], drain_s: float, tell: Callable[[str], object]) -> None:
        """address: of the server. bind: the gateway's own address and port. tell: the operator's log."""
        host = LOOPBACK if address.host in ("0.0.0.0", "::") else address.host
        self._command = [
            *(sys.executable, "-I", str(CHILD), str(os.getpid()), sys.executable, "-I", "-m", MODULE),
            *("--triton", f"{host}:{address.grpc_port}", "--host", bind[0], "--port", str(bind[1])),
            *("--drain", f"{drain_s:g}"),
        ]
        self._port = bind[1]
        self._drain_s = drain_s
        self._tell = tell
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="gateway")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Lets its requests end, as the server does; returns at once. Safe in a signal handler."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            # Its lines are a log here: the server's stdout is for who waits for it.
            with subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
            ) as process:
                self._process = process
                if self._stopping.is_set():
                    process.terminate()
                code = self._wait(process)
            if self._stopping.is_set():
                return
            self._tell(f"the gateway on port {self._port} ended with code {code}, again in {pause:g} s")
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while not self._stopping.wait(0.25):
            if (code := process.poll()) is not None:
                return code
        try:
            return process.wait(self._drain_s + STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
