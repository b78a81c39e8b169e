"""A server as docs/security.md has it made: its openssl lines, its settings, its command, but for names and ports."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from process_watch import ProcessWatch
from system_server import Server, free_address

from mixtral_client import Client, TlsOptions
from mixtral_serving.server.admin_token import find_compiler
from mixtral_serving.server.installation import unsupported_platform

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's blocks of code."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@dataclass(frozen=True)
class GuardedServer:
    """folder: has the files that the page makes. ready: what the launcher printed. log: all of Triton's. watch: what
    was seen while it started."""

    server: Server
    folder: Path
    token: str
    ready: str
    log: Path
    watch: ProcessWatch

    @property
    def tls(self) -> TlsOptions:
        """The known client's."""
        return TlsOptions(self.folder / "ca.pem", self.folder / "alice.pem", self.folder / "alice.key")

    def client(self) -> Client:
        return Client(self.server.grpc_url, tls=self.tls)


@pytest.fixture(scope="session")
def guarded(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    if find_compiler() is None or shutil.which("openssl") is None:
        pytest.skip("an admin token needs a C compiler, and the page's commands openssl")
    folder = tmp_path_factory.mktemp("guarded")
    make_files, serve, *_ = blocks("sh")
    make_files = make_files.replace("DNS:gpu-host", "DNS:localhost,IP:127.0.0.1")
    subprocess.run(["bash", "-euc", make_files], cwd=folder, check=True, capture_output=True)
    (settings,) = blocks("toml")
    config = folder / "serve.toml"
    config.write_text(settings)
    token, key = (folder / "admin-token").read_text().strip(), (folder / "server.key").read_text().splitlines()[1]
    address = free_address()
    ports = {"http": address.http_port, "grpc": address.grpc_port}
    ports |= {"metrics": address.metrics_port, "health": address.health_port}
    python, script, *options = (
        serve.replace("engines/default", str(engine_dir)).replace("serve.toml", str(config)).split()
    )
    assert (python, script) == ("python", "scripts/serve.py")
    command = [sys.executable, str(ROOT / script), *options, "--verbose"]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    log = folder / "log"
    with log.open("w") as written:
        with ProcessWatch(token, key) as watch:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True)
            assert process.stdout is not None
            ready = process.stdout.readline()
        try:
            assert ready.startswith("ready: "), log.read_text()[-5000:]
            yield GuardedServer(Server(address), folder, token, ready, log, watch)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
