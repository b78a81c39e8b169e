"""The `mixtral-gateway` command."""

import gc
import logging
import os
import socket
import sys
from pathlib import Path

import click

from mixtral_client import MixtralClientError, TlsOptions
from mixtral_gateway.api_keys import ENVIRONMENT, ApiKeyError, ApiKeys
from mixtral_gateway.app import create_app
from mixtral_gateway.server import INTERRUPTED, GatewayServer
from mixtral_gateway.settings import Settings

_FILE = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--triton", default="localhost:8001", show_default=True, metavar="HOST:PORT", help="Triton's gRPC address."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["mixtral"],
    show_default=True,
    metavar="NAME",
    help="The model's name in requests. May be given several times; answers bear the first.",
)
@click.option(
    "--api-keys",
    "key_file",
    type=_FILE,
    help=f"File of lines `name:key`, readable by its owner alone; or the variable {ENVIRONMENT}, with commas "
    "between them. Default: none is asked for.",
)
@click.option("--cors-origin", "origins", multiple=True, metavar="ORIGIN", help="Let web pages of this origin call.")
@click.option("--tls", is_flag=True, help="Encrypt the connection to Triton; implied by the next three.")
@click.option("--ca", type=_FILE, help="The authority that signed Triton's certificate, PEM.")
@click.option("--cert", type=_FILE, help="The gateway's certificate for a server that asks for one, PEM; needs --key.")
@click.option("--key", type=_FILE, help="The key of --cert, PEM, not encrypted.")
@click.option("--max-body", default=4 * 2**20, show_default=True, type=click.IntRange(1024), metavar="BYTES")
@click.option(
    "--idle-timeout",
    default=60.0,
    show_default=True,
    type=_POSITIVE,
    metavar="SECONDS",
    help="Give up when Triton sends nothing, or a reader takes nothing, for so long.",
)
@click.option("--request-timeout", type=_POSITIVE, metavar="SECONDS", help="The longest generation. Default: no limit.")
@click.option(
    "--drain", default=30.0, show_default=True, type=click.FloatRange(0), metavar="SECONDS",
    help="How long running requests may go on after a stop signal.",
)  # fmt: skip
def main(
    triton: str,
    host: str,
    port: int,
    models: tuple[str, ...],
    key_file: Path | None,
    origins: tuple[str, ...],
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    max_body: int,
    idle_timeout: float,
    request_timeout: float | None,
    drain: float,
) -> None:
    """Serve OpenAI's API, and a page to try the model in, from a Mixtral that Triton serves.

    Prints its address when it listens; the access log, JSON lines, goes to stderr. The first SIGTERM or Ctrl-C lets
    running requests end, a second one does not. Exit codes: 0 stopped, 1 failed, 2 wrong usage, 130 interrupted.

    \b
    Example:
      mixtral-gateway --triton localhost:8001 --port 9000
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        encrypted = tls or any((ca, cert, key))
        options = TlsOptions(ca, cert, key) if encrypted else None
        if options is not None:
            options.credentials()  # wrong files are told now, not with the first request
        keys = _keys(key_file)
        settings = Settings(
            triton=triton,
            tls=options,
            models=models,
            keys=keys,
            cors_origins=origins,
            max_body_bytes=max_body,
            idle_timeout_s=idle_timeout,
            request_timeout_s=request_timeout,
            drain_s=drain,
        )
        if keys is None and host not in _LOOPBACK:
            click.echo(f"warning: anyone who reaches {host} can use the model; see --api-keys", err=True)
        listening = _listen(host, port)
    except (ApiKeyError, MixtralClientError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    server = GatewayServer(create_app(settings), host, bound, drain)
    gc.collect()
    gc.freeze()  # what was imported: looking through it takes 50 ms each time, in which no stream goes on
    click.echo(f"listening: http://{shown}:{bound}")
    server.run([listening])
    sys.exit(INTERRUPTED if server.interrupted else 0)


def _keys(key_file: Path | None) -> ApiKeys | None:
    if key_file is not None:
        return ApiKeys.from_file(key_file)
    if ENVIRONMENT in os.environ:
        return ApiKeys.parse(os.environ[ENVIRONMENT].split(","), ENVIRONMENT)
    return None


def _listen(host: str, port: int) -> socket.socket:
    """Raises OSError with the address in its text."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    listening.set_inheritable(False)
    return listening
