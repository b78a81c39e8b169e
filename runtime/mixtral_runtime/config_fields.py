"""Typed access to the fields of a JSON object; what is missing or wrong is named with its value."""

from typing import Any

from mixtral_runtime.errors import CheckpointError


def positive_int(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key} is {value}, it must be a whole number of at least 1")
    return value


def number(data: dict[str, Any], key: str) -> float:
    value = data.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise CheckpointError(f"{key} is {value}, it must be a number above 0")
    return float(value)


def text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{key} is {value}, it must be a string")
    return value


def optional_text(data: dict[str, Any], key: str) -> str | None:
    return None if data.get(key) is None else text(data, key)


def section(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} is {value}, it must be an object")
    return value


def check_fixed(data: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuses the first present field whose value is not the one given; absent fields mean their default."""
    for key, value in expected.items():
        if key in data and data[key] != value:
            raise CheckpointError(f"{key} is {data[key]}, only {value} is supported")
