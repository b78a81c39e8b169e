"""What must hold before the server starts, each failure one sentence with the fix."""

import errno
import os
import shutil
import socket
from pathlib import Path

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument, Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.bindings import check_installed
from mixtral_serving.admission import Admission
from mixtral_serving.serve_config import ServeConfig
from mixtral_serving.server.command import Address
from mixtral_serving.server.exposure import Exposure

SHM_NEEDED = 16 * 2**20  # bytes: six stubs take 1 MiB each at start and grow with the requests


def check_all(engine_dir: Path, config: Path | None, address: Address) -> Manifest:
    """Raises the first MixtralError; returns the engine's manifest."""
    manifest = Manifest.load(engine_dir)
    manifest.check_files(engine_dir)
    check_runtime(manifest)
    check_admission(manifest.limits, config)
    check_ports(load_exposure(config).bind(address))
    check_shared_memory(Path("/dev/shm"))
    return manifest


def check_runtime(manifest: Manifest) -> None:
    """What can be known of the engine's library without loading it."""
    if manifest.runtime == "tensorrt-llm":
        check_installed(manifest)
    if manifest.world_size > 1 and shutil.which("mpirun") is None:
        raise Unavailable(
            f"the engine was built for {manifest.world_size} GPUs, whose servers mpirun starts, and there is none on "
            f"PATH; serve it in the container, or build it with TP=1"
        )


def check_admission(limits: EngineLimits, config: Path | None) -> None:
    """Raises InvalidArgument when the settings let the engine's longest prompt never wait."""
    if config is not None:
        Admission(limits, ServeConfig.load(config).engine.max_queued_tokens)


def load_exposure(config: Path | None) -> Exposure:
    """What the settings open, with its files tried. Raises InvalidArgument."""
    if config is None:
        return Exposure()
    settings = ServeConfig.load(config)
    return Exposure.make(settings.tls, settings.admin, settings.plaintext, config.resolve().parent)


def check_ports(address: Address) -> None:
    ports = {
        "--http-port": address.http_port,
        "--grpc-port": address.grpc_port,
        "--metrics-port": address.metrics_port,
        "--health-port": address.health_port,
    }
    hosts = {"--http-port": address.http_host, "--metrics-port": address.metrics_host}
    if len(set(ports.values())) < len(ports):
        raise InvalidArgument(f"the ports {', '.join(map(str, ports.values()))} must differ")
    for option, port in ports.items():
        host = hosts.get(option) or address.host
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise Unavailable(
                        f"port {port} is in use; stop what listens there or choose another with {option}"
                    ) from error
                raise InvalidArgument(f"cannot listen on {host}:{port}: {error.strerror}") from error


def check_shared_memory(folder: Path) -> None:
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        raise Unavailable(f"{folder} is missing; Triton's Python backend needs POSIX shared memory") from error
    free = stat.f_bavail * stat.f_frsize
    if free < SHM_NEEDED:
        raise Unavailable(
            f"{folder} has {free / 2**20:.0f} MiB free, {SHM_NEEDED / 2**20:.0f} MiB are needed; "
            f"in a container raise it with --shm-size"
        )
