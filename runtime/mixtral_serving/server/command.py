"""The server's command line and environment, made by pure functions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtral_serving.server.installation import Installation

EXIT_TIMEOUT_S = 10  # Triton waits this long for requests under way when it is told to stop


@dataclass(frozen=True, slots=True)
class Address:
    """What the server binds. Loopback by default: who reaches the gRPC port of this Triton can crash it."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    health_port: int = 8003

    @property
    def local_host(self) -> str:
        """Where this machine itself reaches the server."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host

    @property
    def local_http(self) -> str:
        return f"http://{self.local_host}:{self.http_port}"


def server_command(installation: Installation, repository: Path, address: Address, shm_prefix: str) -> list[str]:
    command = [
        str(installation.server),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--http-address={address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics_port}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if installation.backends is not None:
        command.append(f"--backend-directory={installation.backends}")
    return command


def server_environment(
    base: Mapping[str, str], installation: Installation, python_bin: Path, engine_dir: Path, config: Path | None
) -> dict[str, str]:
    """The stub takes its packages from the `python3` that is first on PATH, and ignores PYTHONPATH."""
    environment = dict(base)
    environment["PATH"] = os.pathsep.join([str(python_bin), base.get("PATH", "")])
    libraries = [str(folder) for folder in installation.library_path]
    if libraries:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, base.get("LD_LIBRARY_PATH", "")]).rstrip(
            os.pathsep
        )
    environment["MIXTRAL_ENGINE_DIR"] = str(engine_dir)
    environment.pop("MIXTRAL_SERVE_CONFIG", None)
    if config is not None:
        environment["MIXTRAL_SERVE_CONFIG"] = str(config)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt at a time gains nothing from its threads
    return environment
