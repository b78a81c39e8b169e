"""Signatures as nanobind writes them in doc strings, and as the record has them, in one form.

nanobind puts one line per overload first, `__init__(self, a: int, *, b: float | None = None) -> None`, and what else it
has to say after an empty line. pybind11, which TensorRT-LLM used until 1.0, numbers the overloads; both are read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "([{", ")]}"
OBJECT = re.compile(r"<(?:[\w.]+\.)?(\w+) object at 0x[0-9a-f]+>")
ENUM_REPR = re.compile(r"<([\w.]+): -?\d+>")
LINE = re.compile(r"^(?:\d+\. )?(\w+)\(")


@dataclass(frozen=True, slots=True)
class Parameter:
    """default: as Python text, None when the parameter is required. takes_none: whether None may be given."""

    name: str
    keyword_only: bool = False
    default: str | None = None
    takes_none: bool = False


Signature = tuple[Parameter, ...]


def parse_signatures(doc: str | None, name: str) -> list[Signature]:
    """One for each overload of the function of that name, without `self`. Lines that are no signature are skipped."""
    found = []
    for line in (doc or "").splitlines():
        start = LINE.match(line.strip())
        if start and start[1] == name:
            found.append(_parameters(_inside(line.strip()[start.end() :])))
    return found


def recorded_signature(parameters: list[dict[str, Any]]) -> Signature:
    """From the list that the recorded API has for a constructor or a method."""
    return tuple(
        Parameter(
            name=parameter["name"],
            keyword_only=parameter["kind"] == "keyword_only",
            default=_recorded_default(parameter["default"]),
            # nanobind accepts None, and says so, wherever it is the default.
            takes_none=parameter["type"].startswith("Optional[") or parameter["default"] == "None",
        )
        for parameter in parameters
    )


def recorded_overloads(entry: Mapping[str, Any]) -> list[Signature]:
    """Of a class's constructor; empty when none is bound."""
    if entry["init"] is None:
        return []
    return [recorded_signature(parameters) for parameters in (entry["init"], *entry.get("init_overloads", []))]


def same_default(ours: str | None, theirs: str | None) -> bool:
    """Numbers are compared as float32, which is what C++ keeps of many."""
    if ours is None or theirs is None:
        return ours == theirs
    try:
        a, b = float(ours), float(theirs)
    except ValueError:
        return ours == theirs
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _recorded_default(default: object) -> str | None:
    if default == "required":
        return None
    if default == "None" or (isinstance(default, str) and re.match(r"[A-Z]\w*[.(]", default)):
        return str(default)
    return repr(default)


def _inside(text: str) -> str:
    """Up to the bracket that closes the one before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            return text[:place]
    return text


def _split(text: str) -> Iterator[str]:
    """At the commas outside of brackets."""
    depth, begun = 0, 0
    for place, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            yield text[begun:place].strip()
            begun = place + 1
    if text[begun:].strip():
        yield text[begun:].strip()


def _parameters(text: str) -> Signature:
    parameters, keyword_only = [], False
    for part in _split(text):
        if part == "*":
            keyword_only = True
        elif part != "/":
            head, _, default = part.partition(" = ")
            name, _, kind = head.partition(": ")
            if name != "self":
                parameters.append(
                    Parameter(
                        name.strip(),
                        keyword_only,
                        _plain_default(default) if default else None,
                        _takes_none(kind),
                    )
                )
    return tuple(parameters)


def _takes_none(kind: str) -> bool:
    """`int | None` and `Optional[int]` do, `list[int | None]` does not."""
    if kind.removeprefix("typing.").startswith("Optional["):
        return True
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", kind)) != kind:
        kind = shorter
    return "None" in kind.split(" | ")


def _plain_default(text: str) -> str:
    """Without addresses and modules: `<m.SamplingConfig object at 0x7f>` -> `SamplingConfig()`, `<X.A: 0>` -> `X.A`."""
    if match := OBJECT.fullmatch(text):
        return f"{match[1]}()"
    if match := ENUM_REPR.fullmatch(text):
        text = match[1]
    return ".".join(text.split(".")[-2:]) if re.fullmatch(r"[A-Za-z_][\w.]*", text) else text
