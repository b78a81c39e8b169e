"""Everything an operator tunes: one strict TOML file, named by MIXTRAL_SERVE_CONFIG. Unknown keys are refused."""

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mixtral_runtime.errors import InvalidArgument

DEVICES = ("auto", "cpu", "cuda")
ACTIVATION_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """device: auto takes a GPU when there is one. activation_dtype: None is the checkpoint's. drain_s: how long
    running requests may go on when the server stops."""

    device: str = "auto"
    activation_dtype: str | None = None
    drain_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ServeConfig:
    engine: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def from_environment(cls) -> "ServeConfig":
        """The file that MIXTRAL_SERVE_CONFIG names, or the defaults without one."""
        path = os.environ.get("MIXTRAL_SERVE_CONFIG")
        return cls.load(Path(path)) if path else cls()

    @classmethod
    def load(cls, path: Path) -> "ServeConfig":
        """Raises InvalidArgument naming the file, the key and what is allowed."""
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the configuration {path} cannot be read: {error}") from error
        _refuse_unknown(path, "", table, cls)
        engine = table.get("engine", {})
        if not isinstance(engine, dict):
            raise InvalidArgument(f"{path}: engine must be a table")
        _refuse_unknown(path, "engine.", engine, EngineConfig)
        config = EngineConfig(**engine)
        _check_choice(path, "engine.device", config.device, DEVICES)
        if config.activation_dtype is not None:
            _check_choice(path, "engine.activation_dtype", config.activation_dtype, ACTIVATION_DTYPES)
        if isinstance(config.drain_s, bool) or not isinstance(config.drain_s, int | float) or not config.drain_s >= 0:
            raise InvalidArgument(f"{path}: engine.drain_s is {config.drain_s!r}, it must be a number of at least 0")
        return cls(config)


def _refuse_unknown(path: Path, prefix: str, table: dict[str, Any], kind: type[Any]) -> None:
    known = [f.name for f in fields(kind)]
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{path}: unknown key {prefix}{key}, known are {', '.join(known)}")


def _check_choice(path: Path, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument(f"{path}: {key} is {value!r}, it must be one of {', '.join(allowed)}")
