"""Starts a Triton server for one engine and stays with it until it ends.

Example: python scripts/serve.py --engine engines/default
"""

import contextlib
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from mixtral_runtime.errors import MixtralError
from mixtral_serving.serve_config import ServeConfig
from mixtral_serving.server.command import Address
from mixtral_serving.server.gateway import GatewayProcess, why_not
from mixtral_serving.server.health import HealthEndpoint
from mixtral_serving.server.leftovers import remove_leftovers
from mixtral_serving.server.preflight import check_all
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test, server_version
from mixtral_serving.server.supervisor import Supervisor

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
PORT = click.IntRange(1, 65535)


@click.command(help=__doc__)
@click.option("--engine", "engine_dir", type=click.Path(path_type=Path), required=True, help="Engine directory.")
@click.option("--config", type=click.Path(path_type=Path), help="Operator settings, a TOML file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--http-port", default=8000, show_default=True, type=PORT)
@click.option("--grpc-port", default=8001, show_default=True, type=PORT)
@click.option("--metrics-port", default=8002, show_default=True, type=PORT)
@click.option("--health-port", default=8003, show_default=True, type=PORT, help="Port of /live, /startup and /ready.")
@click.option("--gateway-port", type=PORT, help="Also start the OpenAI gateway there.  [default: none]")
@click.option("--gateway-host", default="127.0.0.1", show_default=True, help="Address that the gateway binds.")
@click.option("--verbose", is_flag=True, help="Show all of Triton's log.")
@click.option("--ready-timeout", default=600.0, show_default=True, help="Seconds until the server must be ready.")
def main(
    engine_dir: Path,
    config: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    health_port: int,
    gateway_port: int | None,
    gateway_host: str,
    verbose: bool,
    ready_timeout: float,
) -> None:
    address = Address(host, http_port, grpc_port, metrics_port, health_port)
    try:
        if ended := remove_leftovers():
            click.echo(f"ended {ended} processes of a server whose launcher was killed", err=True)
        manifest = check_all(engine_dir, config, address)
        settings = ServeConfig.load(config) if config else ServeConfig()

        def new_server() -> ServerProcess:
            return ServerProcess(REPOSITORY, engine_dir, address, config, verbose=verbose)

        def announce(server: ServerProcess) -> None:
            if warning := server.exposure.crash_warning(server.address, server_version(server.address)):
                click.echo(f"warning: {warning}", err=True)
            open_ports = server.exposure.describe(server.address)
            click.echo(f"ready: {manifest.runtime} engine {engine_dir}, {open_ports}, health {host}:{health_port}")

        supervisor = Supervisor(
            new_server,
            settings.supervision,
            check=lambda server: self_test(server.address, server.exposure),
            ready_timeout_s=ready_timeout,
            drain_s=settings.engine.drain_s,
            tell=lambda line: click.echo(line, err=True),
            on_ready=announce,
        )
        with contextlib.ExitStack() as beside:
            stops: list[Callable[[], None]] = [supervisor.stop]
            if gateway_port is not None:
                if reason := why_not(encrypted=settings.tls.certificate is not None):
                    click.echo(f"warning: no gateway: {reason}", err=True)
                else:
                    tell = partial(click.echo, err=True)
                    gateway = GatewayProcess(address, (gateway_host, gateway_port), settings.engine.drain_s, tell)
                    stops.append(beside.enter_context(gateway).stop)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, frame: [stop() for stop in stops])
            beside.enter_context(HealthEndpoint(host, health_port, supervisor.health))
            sys.exit(supervisor.run())
    except MixtralError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
