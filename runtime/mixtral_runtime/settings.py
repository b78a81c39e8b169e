"""Operator settings: a frozen dataclass per section of the TOML file, which checks its own ranges when it is made."""

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mixtral_runtime.errors import InvalidArgument

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], table: object, section: str) -> Settings:
    """The dataclass of a section from its table; missing keys keep their defaults.

    Annotations may be bool, int, float, str, Literal of strings, tuple[str, ...] (a TOML array), and any of them or
    None, which is the key left out. Raises InvalidArgument naming the key, its value and what is allowed.
    """
    if not isinstance(table, Mapping):
        raise InvalidArgument(f"{section} must be a table")
    refuse_unknown_keys(kind, table, f"{section}.")
    hints = get_type_hints(kind)
    try:
        return kind(**{key: _typed(key, value, hints[key]) for key, value in table.items()})
    except InvalidArgument as error:
        raise InvalidArgument(f"{section}.{error}") from error


def refuse_unknown_keys(kind: type[Any], table: Mapping[str, Any], prefix: str = "") -> None:
    known = [f.name for f in fields(kind)]
    for key in table:
        if key not in known:
            raise InvalidArgument(f"unknown key {prefix}{key}, known are {', '.join(known)}")


def check_range(
    name: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """For `__post_init__` of a section. None, a setting left out, is in every range; NaN is in none."""
    if value is None:
        return
    allowed = [
        (at_least, "at least", at_least is None or value >= at_least),
        (above, "above", above is None or value > above),
        (at_most, "at most", at_most is None or value <= at_most),
    ]
    if not all(holds for _, _, holds in allowed):
        text = " and ".join(f"{word} {limit:g}" for limit, word, _ in allowed if limit is not None)
        raise InvalidArgument(f"{name} is {value:g}, it must be {text}")


def _typed(key: str, value: object, hint: Any) -> object:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif get_origin(kind) is tuple:
            if isinstance(value, list) and all(isinstance(part, str) for part in value):
                return tuple(value)
        elif kind is float and type(value) is int:
            return float(value)
        elif type(value) is kind:  # not isinstance: true is no number
            return value
    allowed = " or ".join(_describe(kind) for kind in kinds if kind is not types.NoneType)
    raise InvalidArgument(f"{key} is {value!r}, it must be {allowed}")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list of strings"
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return names[kind]
