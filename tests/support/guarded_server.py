"""A server as an operator who trusts nobody starts it: mutual TLS and an admin token, gRPC on every interface."""

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority, Pair
from process_watch import ProcessWatch
from system_server import Server, free_address

from mixtral_client import Client, TlsOptions
from mixtral_serving.server.admin_token import find_compiler
from mixtral_serving.server.installation import unsupported_platform

SERVE = Path(__file__).resolve().parents[2] / "scripts" / "serve.py"
SETTINGS = """
[tls]
certificate = "{certificate}"
key = "{key}"
client_ca = "{ca}"

[admin]
token_file = "admin-token"
"""


@dataclass(frozen=True)
class GuardedServer:
    """ready: what the launcher printed. log: all of Triton's. watch: what was seen while it started."""

    server: Server
    authority: Authority
    known: Pair
    token: str
    ready: str
    log: Path
    watch: ProcessWatch

    @property
    def tls(self) -> TlsOptions:
        return self.authority.options(self.known)

    def client(self) -> Client:
        return Client(self.server.grpc_url, tls=self.tls)


@pytest.fixture(scope="session")
def guarded(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    if find_compiler() is None:
        pytest.skip("there is no C compiler, which an admin token needs")
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder, "ours")
    pair = authority.issue("server", "localhost", "127.0.0.1")
    token = secrets.token_hex(32)
    token_file = folder / "admin-token"
    token_file.touch(0o600)
    token_file.write_text(f"{token}\n")
    config = folder / "serve.toml"
    config.write_text(SETTINGS.format(certificate=pair.certificate.name, key=pair.key.name, ca=authority.ca.name))
    address = free_address()
    ports = {"http": address.http_port, "grpc": address.grpc_port, "metrics": address.metrics_port}
    command = [sys.executable, str(SERVE), "--engine", str(engine_dir), "--config", str(config), "--host", "0.0.0.0"]
    command += ["--verbose", *(f"--{name}-port={port}" for name, port in ports.items())]
    log = folder / "log"
    with log.open("w") as written:
        with ProcessWatch(token, pair.key.read_text().splitlines()[1]) as watch:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True)
            assert process.stdout is not None
            ready = process.stdout.readline()
        try:
            assert ready.startswith("ready: "), log.read_text()[-5000:]
            yield GuardedServer(Server(address), authority, authority.issue("client"), token, ready, log, watch)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
