"""docs/benchmarking.md has every field of a result file with its type, in order, and no other."""

import dataclasses
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from mixtral_client.bench import result

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "benchmarking.md").read_text()
SCHEMA = DOC.split("## The result file", 1)[1]
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "anything", NoneType: "null"}


def in_words(kind: Any) -> str:
    """A type as the page writes it: JSON's words, and the names of our objects."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in arguments)
    if origin is UnionType:
        return " or ".join(map(in_words, arguments))
    if origin is list:
        return f"list of {in_words(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(in_words, arguments))}]"
    if origin is dict:
        return f"object of {in_words(arguments[1])}"
    return str(kind.__name__)


def objects() -> list[type]:
    """All dataclasses of the file, found from its root."""
    found: list[type] = []

    def visit(kind: Any) -> None:
        for argument in get_args(kind):
            visit(argument)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind not in found:
            found.append(kind)
            for hint in get_type_hints(kind).values():
                visit(hint)

    visit(result.BenchResult)
    return found


def documented(name: str) -> list[tuple[str, str]]:
    """(field, type) of each row of the table below the heading of that name."""
    sections = re.split(r"^### ", SCHEMA, flags=re.MULTILINE)
    section = next((section for section in sections if section.split("\n", 1)[0] == f"`{name}`"), None)
    assert section is not None, f"docs/benchmarking.md has no heading ### `{name}`"
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, flags=re.MULTILINE)
    assert rows, f"no table below ### `{name}`"
    return rows


@pytest.mark.parametrize("kind", objects(), ids=lambda kind: str(kind.__name__))
def test_every_field_is_documented_with_its_type(kind: type) -> None:
    assert documented(kind.__name__) == [(name, in_words(hint)) for name, hint in get_type_hints(kind).items()]


def test_nothing_is_documented_that_is_not_there() -> None:
    headings = set(re.findall(r"^### `(\w+)`$", SCHEMA, flags=re.MULTILINE))
    assert headings == {kind.__name__ for kind in objects()}
