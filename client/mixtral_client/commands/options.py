"""The options that several commands share, each group packed into one object for the command function."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mixtral_client.aio import AsyncClient
from mixtral_client.connection import DEFAULT_IDLE_TIMEOUT_S, DEFAULT_URL
from mixtral_client.generation import GenerationOptions
from mixtral_client.sync import Client
from mixtral_client.tls import TlsOptions

_Function = Callable[..., Any]
_Decorator = Callable[[_Function], _Function]

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is and what is trusted there. `open` and `open_async` give a client for it."""

    url: str
    idle_timeout: float
    tls: TlsOptions | None

    def open(self) -> Client:
        return Client(self.url, idle_timeout_s=self.idle_timeout, tls=self.tls)

    def open_async(self) -> AsyncClient:
        """To be called inside a running event loop."""
        return AsyncClient(self.url, idle_timeout_s=self.idle_timeout, tls=self.tls)


@dataclass(frozen=True, slots=True)
class Display:
    """How a generation is shown."""

    stream: bool
    as_json: bool
    quiet: bool


def _packed(parameter: str, factory: Callable[..., Any], *options: _Decorator) -> _Decorator:
    """A decorator that adds options to a command and hands their values over as `parameter=factory(**values)`."""

    def carrier() -> None: ...

    for option in options:
        option(carrier)
    names = [option.name for option in carrier.__click_params__]  # type: ignore[attr-defined]

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            packed = factory(**{name: values.pop(name) for name in names})
            return function(**{parameter: packed}, **values)

        for option in reversed(options):
            option(command)
        return command

    return decorate


def _generation_options(timeout: float | None, echo: bool, **values: Any) -> GenerationOptions:
    if values["top_log_probs"]:
        values["return_log_probs"] = True  # the server gives alternatives only beside the chosen token's own
    return GenerationOptions(
        timeout_ms=None if timeout is None else max(1, round(timeout * 1000)),
        exclude_input_in_output=False if echo else None,
        **values,
    )


def _connection(
    url: str, idle_timeout: float, tls: bool, ca: Path | None, cert: Path | None, key: Path | None
) -> Connection:
    encrypted = tls or any((ca, cert, key))
    return Connection(url, idle_timeout, TlsOptions(ca, cert, key) if encrypted else None)


class LogitBias(click.ParamType):  # type: ignore[type-arg]  # only newer clicks can be subscripted
    """A token id and what is added to its logit."""

    name = "ID=BIAS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        if isinstance(value, tuple):
            return value
        token_id, _, bias = str(value).partition("=")
        try:
            return int(token_id), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not a token id, = and a number", param, ctx)


_FILE = click.Path(path_type=Path)

connection_options = _packed(
    "connection",
    _connection,
    click.option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        envvar="MIXTRAL_URL",
        show_envvar=True,
        metavar="HOST:PORT",
        help="The server's gRPC address.",
    ),
    click.option(
        "--idle-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_IDLE_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="Give up when the server sends nothing at all for so long.",
    ),
    click.option(
        "--tls",
        is_flag=True,
        envvar="MIXTRAL_TLS",
        show_envvar=True,
        help="Encrypt the connection; implied by the next three.",
    ),
    click.option(
        "--ca",
        type=_FILE,
        envvar="MIXTRAL_CA",
        show_envvar=True,
        help="The authority that signed the server's certificate, PEM. Default: the public authorities.",
    ),
    click.option(
        "--cert",
        type=_FILE,
        envvar="MIXTRAL_CERT",
        show_envvar=True,
        help="The client's certificate, PEM, for a server that asks for one (mutual TLS); needs --key.",
    ),
    click.option(
        "--key", type=_FILE, envvar="MIXTRAL_KEY", show_envvar=True, help="The key of --cert, PEM, not encrypted."
    ),
)

display_options = _packed(
    "display",
    Display,
    click.option(
        "--no-stream",
        "stream",
        flag_value=False,
        default=True,
        type=bool,
        help="Print the text only when it is complete.",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object at the end instead of text: request_id, text, finish_reason, usage and, if asked "
        "for, token_ids, log_probs, cum_log_prob, top_log_probs, prompt_log_probs.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Do not print the usage line on stderr."),
)

generation_options = _packed(
    "options",
    _generation_options,
    click.option(
        "--max-tokens",
        "-n",
        type=click.IntRange(1, _INT32_MAX),
        default=256,
        show_default=True,
        help="The most tokens to generate.",
    ),
    click.option(
        "--stop",
        "stop_words",
        multiple=True,
        metavar="TEXT",
        help="End at this text, which is cut off. May be given several times.",
    ),
    click.option(
        "--temperature",
        "-t",
        type=click.FloatRange(0, 100),
        help="Sample; higher is more varied, 0 always takes the likeliest token. Default: greedy, or 1 when another "
        "sampling option is given.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, 1024),
        help="Sample from the K likeliest tokens, 0 from all, 1 is greedy. Default: 0.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        help="Sample from the likeliest tokens whose probability reaches P. Default: 1.",
    ),
    click.option(
        "--min-p",
        type=click.FloatRange(0, 1),
        help="Leave out tokens less likely than P times the likeliest. Default: 0.",
    ),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0.01, 100),
        help="Above 1: tokens that have occurred become less likely. Default: 1.",
    ),
    click.option(
        "--presence-penalty",
        type=click.FloatRange(-100, 100),
        help="Taken from the logits of tokens that occur in the output. Default: 0.",
    ),
    click.option(
        "--frequency-penalty",
        type=click.FloatRange(-100, 100),
        help="The same for each time that they occur. Default: 0.",
    ),
    click.option(
        "--logit-bias",
        type=LogitBias(),
        multiple=True,
        help="Added to the logit of a token, -100 bans and 100 forces it. May be given several times.",
    ),
    click.option(
        "--min-tokens", type=click.IntRange(0, _INT32_MAX), help="No end token before so many tokens. Default: 0."
    ),
    click.option(
        "--bad-word",
        "bad_words",
        multiple=True,
        metavar="TEXT",
        help="Never generate the tokens of this text. May be given several times.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        help="Sampling with the same seed gives the same text. Default: chosen by the server.",
    ),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on past the model's end token."),
    click.option("--echo", is_flag=True, help="Begin the text with the prompt."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True, max=_INT32_MAX / 1000),
        metavar="SECONDS",
        help="Deadline on the server; the text so far is kept. Default: none.",
    ),
    click.option(
        "--stream-interval",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Wait for N tokens before each response after the first: less work for the server. Default: 1.",
    ),
    click.option("--token-ids", "return_output_ids", is_flag=True, help="Give the tokens' ids (with --json)."),
    click.option("--log-probs", "return_log_probs", is_flag=True, help="Give their log probabilities (with --json)."),
    click.option(
        "--prompt-log-probs",
        "return_prompt_log_probs",
        is_flag=True,
        help="Give the prompt tokens' log probabilities (with --json).",
    ),
    click.option(
        "--top-log-probs",
        type=click.IntRange(1, 20),
        metavar="K",
        help="Give the K likeliest tokens at each position, implies --log-probs (with --json).",
    ),
)
