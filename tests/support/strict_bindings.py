"""Python classes made from the recorded signatures of TensorRT-LLM's executor bindings, as strict as nanobind or more.

A wrong, misplaced or missing argument, None where the type is not Optional, another type, and any attribute that is
not recorded are a TypeError or AttributeError. (The real Request and ExecutorConfig would take an unknown attribute and
ignore it.) The classes hold values and do nothing.
"""

import enum
import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from importlib.resources import files
from typing import Any

import torch

RECORDED: dict[str, Any] = json.loads(
    files("mixtral_runtime.tensorrt_llm").joinpath("data/bindings_1_2.json").read_text(encoding="utf-8")
)
_CLASSES: dict[str, Any] = {name: spec for name, spec in RECORDED.items() if isinstance(spec, dict) and "init" in spec}
_PYTHON_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),  # converted implicitly
    "str": str,
    "bytes": bytes,
    "dict": dict,
    "type": type,
    "object": object,
    "BaseException": BaseException,
    "timedelta": timedelta,
    "Tensor": torch.Tensor,
    "PathLike": (str, os.PathLike),
    "Callable": Callable,
}


def make_bindings() -> dict[str, Any]:
    """Every recorded name of the module's top level: classes, and enumerations with exactly the recorded members."""
    made: dict[str, Any] = {}
    for name, members in RECORDED["enums"].items():
        made[name] = enum.Enum(name.rpartition(".")[2], members)
    for name, spec in _CLASSES.items():
        made[name] = _make_class(name, spec, made)
    for name in [name for name in made if "." in name]:
        owner, _, inner = name.rpartition(".")
        if owner in made:
            setattr(made[owner], inner, made[name])
    return {name: value for name, value in made.items() if "." not in name}


def set_values(target: Any, **values: Any) -> Any:
    """Fills properties that the library itself fills, read-only ones included. Returns the object."""
    for name, value in values.items():
        if name not in _CLASSES[type(target).__name__]["properties"]:
            raise AttributeError(f"{type(target).__name__} has no property {name}")
        target._values[name] = value
    return target


def bind_arguments(
    name: str, overloads: list[list[dict[str, Any]]], made: dict[str, Any], args: tuple[Any, ...], kwargs: Any
) -> dict[str, Any]:
    """The arguments by name, defaults filled in, of the first overload that takes the call."""
    complaints = []
    for parameters in overloads:
        try:
            return _bind(parameters, made, args, dict(kwargs))
        except TypeError as error:
            complaints.append(str(error))
    raise TypeError(f"{name}(): incompatible function arguments: {'; '.join(complaints)}")


def _bind(
    parameters: list[dict[str, Any]], made: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    positional = [parameter["name"] for parameter in parameters if parameter["kind"] == "positional"]
    if len(args) > len(positional):
        raise TypeError(f"{len(args)} positional arguments, {len(positional)} are allowed")
    given = dict(zip(positional, args, strict=False))
    if twice := given.keys() & kwargs.keys():
        raise TypeError(f"{sorted(twice)[0]} given twice")
    given |= kwargs
    bound: dict[str, Any] = {}
    for parameter in parameters:
        key = parameter["name"]
        value = given.pop(key) if key in given else _default(parameter, made)
        if not _conforms(value, parameter["type"], made):
            raise TypeError(f"{key} is {value!r}, it must be {parameter['type']}")
        bound[key] = value
    if given:
        raise TypeError(f"unknown argument {sorted(given)[0]}")
    return bound


def _default(parameter: dict[str, Any], made: dict[str, Any]) -> Any:
    default = parameter["default"]
    if default == "required":
        raise TypeError(f"{parameter['name']} is missing")
    if default == "None":
        return None
    if isinstance(default, str) and default.endswith("()"):
        return made[default.removesuffix("()")]()
    if isinstance(default, str) and "." in default:
        owner, _, member = default.rpartition(".")
        return made[owner][member]
    return default


def _conforms(value: Any, kind: str, made: dict[str, Any]) -> bool:
    if found := re.fullmatch(r"Optional\[(.*)\]", kind):
        return value is None or _conforms(value, found[1], made)
    if found := re.fullmatch(r"list\[(.*)\]", kind):
        return isinstance(value, list | tuple) and all(_conforms(part, found[1], made) for part in value)
    if found := re.fullmatch(r"dict\[str, (.*)\]", kind):
        return isinstance(value, dict) and all(_conforms(part, found[1], made) for part in value.values())
    if kind in ("int", "float") and isinstance(value, bool):
        return False  # nanobind would take it; here it can only be a mistake
    expected = _PYTHON_TYPES.get(kind) or made.get(kind)
    return expected is not None and isinstance(value, expected)


def _make_class(name: str, spec: dict[str, Any], made: dict[str, Any]) -> type:
    parameters: list[dict[str, Any]] | None = spec["init"]
    overloads = [] if parameters is None else [parameters, *spec.get("init_overloads", [])]
    types = {parameter["name"]: parameter["type"] for parameter in parameters or []}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if parameters is None:
            raise TypeError(f"{name}: no constructor defined")
        bound = bind_arguments(name, overloads, made, args, kwargs)
        self._values = {key: value for key, value in bound.items() if key in spec["properties"]}
        self._bound = bound

    namespace: dict[str, Any] = {"__slots__": ("_bound", "_values"), "__init__": __init__}
    for key in spec["properties"]:
        namespace[key] = _property(name, key, key in spec.get("read_only_properties", []), types.get(key), made)
    for key in spec["methods"]:
        namespace[key] = _recorded_method(name, key)
    return type(name.rpartition(".")[2], (), namespace)


def _property(owner: str, key: str, read_only: bool, kind: str | None, made: dict[str, Any]) -> property:
    def get(self: Any) -> Any:
        return self._values.get(key)

    def put(self: Any, value: Any) -> None:
        if kind is not None and not _conforms(value, kind, made):
            raise TypeError(f"{owner}.{key} is {value!r}, it must be {kind}")
        self._values[key] = value

    return property(get) if read_only else property(get, put)


def _recorded_method(owner: str, key: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{owner}.{key}")

    return method
