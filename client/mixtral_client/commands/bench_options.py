"""The options of `mixtral bench`, and the run that they and a preset mean together."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mixtral_client.bench.arrivals import DEFAULT_BURSTINESS
from mixtral_client.bench.plan import DEFAULT_OUTPUT_PRICE_RATIO, BenchOptions, with_shapes
from mixtral_client.bench.presets import PRESETS
from mixtral_client.bench.slo import parse_slo
from mixtral_client.bench.workload import FILE_OUTPUT_TOKENS, Lengths

_Function = Callable[..., Any]
_Option = Callable[[_Function], _Function]


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # only newer clicks can be subscripted
    """An option whose text a function reads; its ValueError becomes the usage error."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _workers(text: str) -> tuple[int | str, ...]:
    return tuple(word if word == "max" else _at_least_1(word) for word in text.split(","))


def _at_least_1(word: str) -> int:
    if not word.strip().isdigit() or int(word) < 1:
        raise ValueError(f"{word!r} is neither a number from 1 nor max")
    return int(word)


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a rate such as 0.5") from None
    if not 0 < rate < math.inf:
        raise ValueError(f"a rate of {word} requests/s is not possible, it must be above 0")
    return rate


def _rates(text: str) -> tuple[float, ...]:
    return tuple(map(_rate, text.split(",")))


def _range(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    if not dash or not _rate(low) < _rate(high):
        raise ValueError(f"{text!r} is not a range of rates such as 0.5-20")
    return _rate(low), _rate(high)


def _processes(text: str) -> int | None:
    return None if text == "auto" else _at_least_1(text)


_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)
_FROM_0 = click.IntRange(min=0)
_LENGTHS = _Parsed("lengths", Lengths.parse)


def _value(name: str, kind: Any, metavar: str, help_text: str, *, to: str | None = None) -> _Option:
    """An option that takes a value. kind: a type of click's. to: the field of BenchOptions if it has another name."""
    return click.option(name, *filter(None, [to]), type=kind, metavar=metavar, help=help_text)


_OPTIONS: tuple[_Option, ...] = (
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Repeat a public write-up's measurement: baseten (512/128 tokens, one request at a time), fireworks "
        "(1000/50, rising Poisson rates), friendli (prompts like Dolly's or its file, rising Poisson rates, under a "
        "limit), nvidia (nine pairs of lengths at the most load). Other options replace what it says.",
    ),
    _value(
        "--concurrency",
        _Parsed("workers", _workers),
        "N,…",
        "Closed loop: so many requests at a time; max is twice the server's batch size. Default: 1.",
    ),
    _value(
        "--rate",
        _Parsed("rates", _rates),
        "R,…",
        "Open loop: requests per second, sent whether or not earlier ones have ended.",
        to="rates",
    ),
    _value(
        "--search-rate",
        _Parsed("range", _range),
        "LOW-HIGH",
        "Open loop: find the highest rate in the range that meets --slo.",
        to="search",
    ),
    _value(
        "--search-tolerance", _POSITIVE, "SHARE", "Stop searching when the rate is known this closely. Default: 0.1."
    ),
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "constant", "bursty"]),
        help="How an open loop spreads its requests. Default: poisson.",
    ),
    _value(
        "--burstiness",
        _POSITIVE,
        "SHAPE",
        f"Of bursty arrivals: the gaps' gamma shape; 1 is Poisson, smaller is burstier. Default: {DEFAULT_BURSTINESS}.",
    ),
    _value(
        "--requests",
        _COUNT,
        "N",
        "Measure so many requests at each point. Default: closed loop 4 per worker and at least 16.",
    ),
    _value(
        "--duration", _POSITIVE, "SECONDS", "Measure for so long at each point. Default: open loop 30.", to="duration_s"
    ),
    _value(
        "--warmup-requests",
        _FROM_0,
        "N",
        "Leave the first requests of a point out. Default: closed loop one per worker.",
    ),
    _value(
        "--warmup",
        click.FloatRange(min=0),
        "SECONDS",
        "Leave out what is sent in the first seconds of a point. Default: open loop 2.",
        to="warmup_s",
    ),
    _value(
        "--input-tokens",
        _LENGTHS,
        "N|A-B",
        "Synthetic prompts of exactly so many tokens, or evenly drawn from a range. Default: 512.",
    ),
    _value(
        "--output-tokens",
        _LENGTHS,
        "N|A-B",
        f"Tokens to generate. Default: 128; with --prompts at most {FILE_OUTPUT_TOKENS}.",
    ),
    _value(
        "--shared-prefix",
        click.FloatRange(0, 1),
        "SHARE",
        "The share of each synthetic prompt that is the same in all of them. Default: 0.",
    ),
    _value(
        "--scale-lengths",
        _POSITIVE,
        "FACTOR",
        "Make synthetic prompts and outputs longer or shorter, for a server with other limits. Default: 1.",
    ),
    _value(
        "--prompts",
        click.Path(path_type=Path),
        "FILE",
        "Prompts from JSONL or Parquet: Dolly's fields, ShareGPT conversations, or a field prompt.",
    ),
    click.option(
        "--ignore-eos/--stop-at-eos",
        default=None,
        help="Go on to the full output length. Default: on for synthetic prompts, off for files.",
    ),
    _value("--seed", _FROM_0, "N", "Of prompts, lengths and arrivals; the same seed sends the same. Default: 0."),
    _value(
        "--slo",
        _Parsed("limits", parse_slo),
        "LIMIT,…",
        "Latency limits such as ttft_p99=200ms,tpot_p99=20ms (ttft, tpot, e2e; mean, p50, p90, p95, p99, max); "
        "reports goodput and whether each point meets them.",
    ),
    _value("--gpus", _COUNT, "N", "Report rates per GPU too."),
    _value("--price-per-hour", _POSITIVE, "PRICE", "Of the machine; reports the cost per million tokens."),
    _value(
        "--output-price-ratio",
        _POSITIVE,
        "RATIO",
        f"How many prompt tokens an output token costs. Default: {DEFAULT_OUTPUT_PRICE_RATIO:g}.",
    ),
    _value(
        "--processes",
        _Parsed("count", _processes),
        "auto|N",
        "Load generator processes. Default: auto, by the load and the cores.",
    ),
)


def bench_options(function: _Function) -> _Function:
    """Adds the options to a command, which gets None for each that was not given."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def resolve(preset: str | None, given: dict[str, Any]) -> BenchOptions:
    """What the preset says, with the given options in place of it. given: as the command gets them. Raises UsageError
    for options that contradict each other."""
    given = {name: value for name, value in given.items() if value is not None}
    _exclude(given, "concurrency", "rates", "search")
    _exclude(given, "requests", "duration_s")
    _exclude(given, "warmup_requests", "warmup_s")
    _exclude(given, "prompts", "input_tokens")
    _exclude(given, "prompts", "shared_prefix")
    _exclude(given, "prompts", "scale_lengths")
    inputs, outputs = given.pop("input_tokens", None), given.pop("output_tokens", None)
    options = PRESETS[preset] if preset else BenchOptions()
    for group in (("concurrency", "rates", "search"), ("requests", "duration_s"), ("warmup_requests", "warmup_s")):
        if any(name in given for name in group):
            options = replace(options, **{name: getattr(BenchOptions(), name) for name in group})
    options = replace(options, **given)
    if options.prompts is not None:
        options = replace(options, shapes=(), dolly_like=False, output_tokens=outputs)
    elif inputs or outputs or not (options.shapes or options.dolly_like):
        options = with_shapes(options, inputs, outputs)
    if not (options.concurrency or options.rates or options.search):
        options = replace(options, concurrency=(1,))
    return _checked(options, given)


def _checked(options: BenchOptions, given: dict[str, Any]) -> BenchOptions:
    if options.concurrency and (named := [name for name in ("arrivals", "burstiness") if name in given]):
        raise click.UsageError(f"--{named[0]} belongs to an open loop, give --rate or --search-rate with it")
    if options.search is not None and not options.slo:
        raise click.UsageError("--search-rate needs --slo, the limits to be met")
    if options.search is not None and len(options.shapes) > 1:
        raise click.UsageError("--search-rate needs one workload, give --input-tokens and --output-tokens")
    if options.burstiness is not None and options.arrivals != "bursty":
        raise click.UsageError("--burstiness belongs to --arrivals bursty")
    if options.arrivals == "bursty" and options.burstiness is None:
        return replace(options, burstiness=DEFAULT_BURSTINESS)
    return options


_NAMES = {"rates": "rate", "search": "search-rate", "duration_s": "duration", "warmup_s": "warmup"}


def _exclude(given: dict[str, Any], *names: str) -> None:
    both = [f"--{_NAMES.get(name, name.replace('_', '-'))}" for name in names if name in given]
    if len(both) > 1:
        raise click.UsageError(f"{both[0]} and {both[1]} cannot be given together")
