"""A server as `make serve` starts it, on the synthetic engine, for tests that break it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from known_stream import KnownStream
from make_engine import PLUGIN_FOLDER, make_engine
from synthetic_settings import SETTINGS_NAME
from system_server import Server, free_address

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.injection import PLUGIN_PATH
from mixtral_serving.server.command import Address
from mixtral_serving.server.stubs import live_stubs

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 90.0  # nothing may take longer; whatever does hangs
SMALL_SHM = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
LIMITS = EngineLimits(
    max_batch_size=256, max_input_len=16384, max_seq_len=32768, max_num_tokens=1024, max_queue_size=256
)


def small_shared_memory(size: str) -> list[str] | None:
    """The beginning of a command that gets a /dev/shm of that size for itself; None where that is not possible."""
    command = [*SMALL_SHM, f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        return None
    return command


class SupervisedServer:
    """Use it as a context manager: it starts the launcher, and in the end stops it as an operator would. settings: of
    the synthetic engine. supervision: that section of the settings file. before: the beginning of the command."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        supervision: Mapping[str, float],
        *,
        limits: EngineLimits = LIMITS,
        drain_s: float = 5.0,
        before: list[str] | None = None,
        address: Address | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / "log"
        self.engine_dir = folder / "engine"
        make_engine(self.engine_dir, settings, limits)
        lines = ["[engine]", f"drain_s = {drain_s}", "[supervision]"]
        self._config = folder / "serve.toml"
        self._config.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in supervision.items())]))
        self.address = address or free_address()
        self.server = Server(self.address)
        self._before = before or []

    def __enter__(self) -> Self:
        self.start()
        self.wait_until(lambda: self.health("ready")["ok"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()  # and the server ends with it

    def start(self) -> None:
        ports = self.address
        command = [*self._before, sys.executable, str(ROOT / "scripts" / "serve.py"), "--engine", str(self.engine_dir)]
        command += ["--config", str(self._config), f"--http-port={ports.http_port}", f"--grpc-port={ports.grpc_port}"]
        command += [f"--metrics-port={ports.metrics_port}", f"--health-port={ports.health_port}"]
        folders = os.pathsep.join(filter(None, [str(PLUGIN_FOLDER), os.environ.get(PLUGIN_PATH)]))
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | {PLUGIN_PATH: folders}, stdout=log, stderr=subprocess.STDOUT
            )

    def next_engine(self, settings: Mapping[str, Any]) -> None:
        """How the engine behaves that the next start opens."""
        (self.engine_dir / SETTINGS_NAME).write_text(json.dumps(settings))

    def health(self, check: str) -> dict[str, Any]:
        """What the endpoint says; not ok without an answer."""
        url = f"http://127.0.0.1:{self.address.health_port}/{check}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                said: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error)
        except OSError:
            said = {"ok": False, "reasons": ["no answer"], "restarts": 0}
        return said

    def triton(self) -> psutil.Process:
        (server,) = [
            child for child in psutil.Process(self.process.pid).children() if child.name().startswith("tritonserver")
        ]
        return server

    def stub(self, model: str) -> psutil.Process:
        """The process of a model; one of several if it has them."""
        return psutil.Process(min(pid for pid, name in live_stubs(self.process.pid).items() if name == model))

    def stream(self, number: int, tokens: int, **options: Any) -> KnownStream:
        """Begins one and waits for its first token."""
        stream = self.open(number, tokens, **options)
        assert stream.begun.wait(PATIENCE_S), "no token came"
        return stream

    def open(self, number: int, tokens: int, **options: Any) -> KnownStream:
        return KnownStream(self.server.grpc_url, number, tokens, **options)

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-5000:]
            time.sleep(0.05)

    def wait_until_back(self, restarts: int) -> None:
        """Until so many restarts have been made and a request is answered again."""
        self.wait_until(lambda: (now := self.health("ready"))["ok"] and now["restarts"] >= restarts)
        again = self.open(0, 3)
        again.finish()
        again.check_whole()
