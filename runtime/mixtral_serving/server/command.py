"""The server's command line and environment, made by pure functions."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixtral_serving.server.installation import Installation

EXIT_TIMEOUT_S = 10  # Triton waits this long for requests under way when it is told to stop


@dataclass(frozen=True, slots=True)
class Address:
    """What the server binds. Loopback by default: who reaches the gRPC port of this Triton can crash it. http_host,
    metrics_host: where these two differ from `host`."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    health_port: int = 8003
    http_host: str | None = None
    metrics_host: str | None = None

    @property
    def local_host(self) -> str:
        """Where this machine itself reaches gRPC."""
        return _local(self.host)

    @property
    def local_http(self) -> str:
        """The URL at which this machine itself reaches HTTP."""
        return f"http://{_local(self.http_host or self.host)}:{self.http_port}"


def _local(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host


def server_command(
    installation: Installation, repository: Path, address: Address, shm_prefix: str, exposure: Sequence[str] = ()
) -> list[str]:
    """exposure: the arguments that protect the endpoints (`Exposure.arguments`)."""
    command = [
        str(installation.server),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--http-address={address.http_host or address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-address={address.metrics_host or address.host}",
        f"--metrics-port={address.metrics_port}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *exposure,
    ]
    if installation.backends is not None:
        command.append(f"--backend-directory={installation.backends}")
    return command


def worker_command(installation: Installation, repository: Path, shm_prefix: str) -> list[str]:
    """The server of a rank that only works for the leading one: the engine model alone, and nothing to reach it by."""
    command = [
        str(installation.server),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--load-model=tensorrt_llm",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if installation.backends is not None:
        command.append(f"--backend-directory={installation.backends}")
    return command


def mpirun_command(ranks: Sequence[Sequence[str]]) -> list[str]:
    """One command line that starts a server per rank, the leading one first. Its processes find each other by it:
    TensorRT-LLM's executor joins the ranks over MPI, and lets the first lead."""
    command = ["mpirun", "--allow-run-as-root"]
    for rank, server in enumerate(ranks):
        command += [":"] if rank > 0 else []
        command += ["-n", "1", *server]
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
