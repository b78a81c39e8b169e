"""Dataclasses from and to JSON, strictly: missing and unknown keys and wrong types are errors that name their place.

Understood types: dataclasses, str, bool, int, float (finite; an integer is taken as one), None, Literal, list[T],
fixed tuples (JSON lists), dict[str, T], Any, and unions. Of several dataclasses in a union the one is taken whose
Literal fields of one value fit.
"""

import dataclasses
import math
import types
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class JsonMismatch(ValueError):
    """A value does not fit its type; the message says where, what was expected and what is there."""


def from_json(kind: type[T], value: Any, where: str) -> T:
    """The dataclass `kind` from decoded JSON. where: the name of the whole, for messages. Raises JsonMismatch."""
    result: T = _read(kind, value, where)
    return result


def to_json(value: Any) -> Any:
    """The inverse of `from_json`: dataclasses become objects, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), value, where)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise JsonMismatch(f"{where} is {_shown(value)}, it must be one of {', '.join(map(repr, get_args(kind)))}")
    if origin is list:
        (item,) = get_args(kind)
        return [_read(item, entry, f"{where}[{i}]") for i, entry in enumerate(_expect(list, value, where))]
    if origin is tuple:
        items = get_args(kind)
        entries = _expect(list, value, where)
        if len(entries) != len(items):
            raise JsonMismatch(f"{where} has {len(entries)} entries, it must have {len(items)}")
        pairs = zip(items, entries, strict=True)
        return tuple(_read(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(pairs))
    if origin is dict:
        _, item = get_args(kind)
        return {key: _read(item, entry, f"{where}.{key}") for key, entry in _expect(dict, value, where).items()}
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    return _read_scalar(kind, value, where)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    entries = _expect(dict, value, where)
    hints = _hints(kind)
    if unknown := sorted(entries.keys() - hints.keys()):
        raise JsonMismatch(f"{where} has the unknown key {unknown[0]!r}")
    if missing := [name for name in hints if name not in entries]:
        raise JsonMismatch(f"{where} has no {missing[0]!r}")
    return kind(**{name: _read(hint, entries[name], f"{where}.{name}") for name, hint in hints.items()})


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if isinstance(value, dict):
        fitting = [kind for kind in others if _tagged_as(kind, value)]
        others = fitting or others
    return _read(others[0], value, where)


def _tagged_as(kind: Any, value: dict[str, Any]) -> bool:
    if not dataclasses.is_dataclass(kind):
        return False
    hints = _hints(kind)  # type: ignore[arg-type]
    tags = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return all((value.get(name),) == tag for name, tag in tags.items() if len(tag) == 1)


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None):
        kind = types.NoneType
    checked = _expect(kind, value, where)
    if kind is float and not math.isfinite(checked):
        raise JsonMismatch(f"{where} is {value}, it must be a finite number")
    return checked


def _expect(kind: type[T], value: Any, where: str) -> T:
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "an integer",
        float: "a number",
        bool: "a boolean",
    }
    raise JsonMismatch(f"{where} is {_shown(value)}, it must be {names.get(kind, kind.__name__)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
