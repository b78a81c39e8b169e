"""`synthetic.json` in an engine directory: how the synthetic engine behaves. Unknown keys are refused."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.settings import check_range, read_settings, refuse_unknown_keys

SETTINGS_NAME = "synthetic.json"


@dataclass(frozen=True, slots=True)
class Pause:
    """The engine stands still for `for_s` seconds, with or without work: from `at_s` seconds after it was opened on, or
    before step `at_step` ends (the first is 1). Given every_s or every_steps, again and again."""

    for_s: float
    at_s: float | None = None
    at_step: int | None = None
    every_s: float | None = None
    every_steps: int | None = None

    def __post_init__(self) -> None:
        check_range("for_s", self.for_s, above=0)
        check_range("at_s", self.at_s, at_least=0)
        check_range("at_step", self.at_step, at_least=1)
        check_range("every_s", self.every_s, above=self.for_s)
        check_range("every_steps", self.every_steps, at_least=1)
        if (self.at_s is None) == (self.at_step is None):
            raise InvalidArgument("at_s and at_step are alternatives, one of them must be given")
        if (self.every_s is not None and self.at_s is None) or (self.every_steps is not None and self.at_step is None):
            raise InvalidArgument("every_s belongs to at_s, every_steps to at_step")


@dataclass(frozen=True, slots=True)
class Failure:
    """what: `step`, step `at` raises and with `always` all later ones too, which ends the requests in it with an error;
    `request`, the request number `at` fails after `tokens` tokens; `engine`, the engine stops at step `at`, as after
    a fault of its own; `process`, the process dies there. Numbers start at 1, and a server's first request and step
    are its own warm-up."""

    what: Literal["step", "request", "engine", "process"]
    at: int
    tokens: int = 0
    always: bool = False

    def __post_init__(self) -> None:
        check_range("at", self.at, at_least=1)
        check_range("tokens", self.tokens, at_least=0)


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """step_s: seconds of a step, in which every running request gets one token; 0 is as fast as it goes. jitter: the
    share by which steps are longer or shorter, uniform and the same for the same seed. prefill_token_s,
    prefill_request_s: what a token and a request of prefill add to a step. emissions: a file that records when each
    token was made (`synthetic_emissions`), relative to the engine directory."""

    step_s: float = 0.02
    jitter: float = 0.0
    prefill_token_s: float = 0.0
    prefill_request_s: float = 0.0
    seed: int = 0
    emissions: str | None = None
    pauses: tuple[Pause, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        check_range("step_s", self.step_s, at_least=0)
        check_range("jitter", self.jitter, at_least=0, at_most=1)
        check_range("prefill_token_s", self.prefill_token_s, at_least=0)
        check_range("prefill_request_s", self.prefill_request_s, at_least=0)

    @classmethod
    def load(cls, engine_dir: Path) -> "SyntheticSettings":
        """Raises InvalidArgument naming the file, the key and what is allowed."""
        path = engine_dir / SETTINGS_NAME
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} cannot be read: {error}") from error
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: {error}") from error

    @classmethod
    def of(cls, data: object) -> "SyntheticSettings":
        """From a JSON object; keys that are left out keep their defaults."""
        if not isinstance(data, dict):
            raise InvalidArgument("the settings are not an object")
        refuse_unknown_keys(cls, data)
        plain = {key: value for key, value in data.items() if key not in ("pauses", "failures")}
        pauses, failures = _list(data, "pauses", Pause), _list(data, "failures", Failure)
        settings = read_settings(cls, plain, "settings")
        values = {f.name: getattr(settings, f.name) for f in fields(cls)}
        return cls(**values | {"pauses": pauses, "failures": failures})


def _list(data: dict[str, Any], key: str, kind: type[Any]) -> tuple[Any, ...]:
    entries = data.get(key, [])
    if not isinstance(entries, list):
        raise InvalidArgument(f"{key} is not a list")
    return tuple(_entry(kind, entry, f"{key}[{i}]") for i, entry in enumerate(entries))


def _entry(kind: type[Any], entry: object, where: str) -> Any:
    try:
        return read_settings(kind, entry, where)
    except TypeError as error:  # a key without a default is missing
        raise InvalidArgument(f"{where} is incomplete: {error}") from error
