"""Starts a Triton server for one engine and stays with it until it ends.

Example: python scripts/serve.py --engine engines/default
"""

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from mixtral_runtime.errors import MixtralError
from mixtral_serving.server.command import Address
from mixtral_serving.server.preflight import check_all
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test, server_version

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
PORT = click.IntRange(1, 65535)


@click.command(help=__doc__)
@click.option("--engine", "engine_dir", type=click.Path(path_type=Path), required=True, help="Engine directory.")
@click.option("--config", type=click.Path(path_type=Path), help="Operator settings, a TOML file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--http-port", default=8000, show_default=True, type=PORT)
@click.option("--grpc-port", default=8001, show_default=True, type=PORT)
@click.option("--metrics-port", default=8002, show_default=True, type=PORT)
@click.option("--verbose", is_flag=True, help="Show all of Triton's log.")
@click.option("--ready-timeout", default=600.0, show_default=True, help="Seconds until the server must be ready.")
def main(
    engine_dir: Path,
    config: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    verbose: bool,
    ready_timeout: float,
) -> None:
    address = Address(host, http_port, grpc_port, metrics_port)
    try:
        manifest = check_all(engine_dir, config, address)
        server = ServerProcess(REPOSITORY, engine_dir, address, config, verbose=verbose)
        sys.exit(serve(server, ready_timeout, f"{manifest.runtime} engine {engine_dir}"))
    except MixtralError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def serve(server: ServerProcess, ready_timeout: float, what: str) -> int:
    """Returns the exit code: 0 after a stop that was asked for, 1 when the server ended by itself."""
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        server.signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    with server:
        try:
            server.wait_until_ready(ready_timeout)
            self_test(server.address, server.exposure)
        except MixtralError:
            if asked:
                return 0
            raise
        if warning := server.exposure.crash_warning(server.address, server_version(server.address)):
            click.echo(f"warning: {warning}", err=True)
        click.echo(f"ready: {what}, {server.exposure.describe(server.address)}")
        code = server.wait()
    if asked:
        return 0
    click.echo(f"error: the server ended by itself, exit code {code}", err=True)
    return 1


if __name__ == "__main__":
    main()
