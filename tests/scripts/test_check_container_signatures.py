"""Signatures as nanobind and pybind11 write them into doc strings, and as the record has them."""

import json
from typing import Any

import pytest
from container_check.bindings import RECORD
from container_check.signature import Parameter, parse_signatures, recorded_overloads, recorded_signature, same_default
from hypothesis import given
from hypothesis import strategies as st
from nanobind_docs import MODULE, line, looks

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
CLASSES = sorted(name for name, entry in RECORDED.items() if "init" in entry)

# What nanobind 2.9.2 wrote for a compiled extension with functions of these forms.
WRITTEN_BY_NANOBIND = (
    "__init__(self, input_token_ids: collections.abc.Sequence[int], max_tokens: int, *, streaming: bool = False, "
    "sampling_config: ext.SamplingConfig = <ext.SamplingConfig object at 0x7f4c88bf6ca0>, "
    "position_ids: collections.abc.Sequence[int] | None = None, "
    "stop_words: collections.abc.Sequence[collections.abc.Sequence[int]] | None = None, priority: float = 0.5, "
    "type: ext.RequestType = RequestType.A, allotted_time_ms: datetime.timedelta | float | None = None, "
    "f: collections.abc.Callable[[int], None] | None = None) -> None"
)
OVERLOADS_BY_NANOBIND = (
    "__init__(self, request_id: int, error_msg: str, client_id: int | None = None) -> None\n"
    "__init__(self, request_id: int, result: ext.Result, client_id: int | None = None) -> None"
)
DOCUMENTED_BY_NANOBIND = "cancel_request(self, id: int | None = None) -> None\n\nCancel it."


def test_a_constructor_as_nanobind_writes_it() -> None:
    (signature,) = parse_signatures(WRITTEN_BY_NANOBIND, "__init__")
    assert signature == (
        Parameter("input_token_ids"),
        Parameter("max_tokens"),
        Parameter("streaming", True, "False"),
        Parameter("sampling_config", True, "SamplingConfig()"),
        Parameter("position_ids", True, "None", True),
        Parameter("stop_words", True, "None", True),
        Parameter("priority", True, "0.5"),
        Parameter("type", True, "RequestType.A"),
        Parameter("allotted_time_ms", True, "None", True),
        Parameter("f", True, "None", True),
    )


def test_overloads_documentation_positional_only_and_none_inside_of_brackets() -> None:
    first, second = parse_signatures(OVERLOADS_BY_NANOBIND, "__init__")
    assert [p.name for p in first] == ["request_id", "error_msg", "client_id"]
    assert [p.name for p in second] == ["request_id", "result", "client_id"]
    assert parse_signatures(DOCUMENTED_BY_NANOBIND, "cancel_request") == [(Parameter("id", False, "None", True),)]
    assert parse_signatures("f(arg: bytes, /) -> ext.Result", "f") == [(Parameter("arg"),)]
    assert parse_signatures("f(a: list[int | None]) -> None", "f") == [(Parameter("a"),)]
    assert parse_signatures("f(a: typing.Optional[int]) -> None", "f") == [(Parameter("a", takes_none=True),)]
    assert parse_signatures(None, "f") == parse_signatures("Some words.", "f") == []


def test_overloads_as_pybind11_writes_them() -> None:
    doc = (
        "__init__(*args, **kwargs)\nOverloaded function.\n\n"
        "1. __init__(self: m.C, a: int = 1) -> None\n\n2. __init__(self: m.C, a: Optional[str]) -> None\n"
    )
    found = parse_signatures(doc, "__init__")
    assert found[1:] == [(Parameter("a", False, "1"),), (Parameter("a", takes_none=True),)]


def test_the_doc_strings_of_these_tests_have_nanobinds_form() -> None:
    """The generator that the tests below use, against what nanobind wrote."""
    parameters: list[dict[str, Any]] = [
        {"name": "input_token_ids", "kind": "positional", "default": "required", "type": "list[int]"},
        {"name": "max_tokens", "kind": "positional", "default": "required", "type": "int"},
        {"name": "streaming", "kind": "keyword_only", "default": False, "type": "bool"},
        {"name": "sampling_config", "kind": "keyword_only", "default": "SamplingConfig()", "type": "SamplingConfig"},
        {"name": "position_ids", "kind": "keyword_only", "default": "None", "type": "Optional[list[int]]"},
        {"name": "stop_words", "kind": "keyword_only", "default": "None", "type": "Optional[list[list[int]]]"},
        {"name": "priority", "kind": "keyword_only", "default": 0.5, "type": "float"},
        {"name": "type", "kind": "keyword_only", "default": "RequestType.A", "type": "RequestType"},
        {"name": "allotted_time_ms", "kind": "keyword_only", "default": "None", "type": "Optional[timedelta]"},
    ]
    written = WRITTEN_BY_NANOBIND.replace("ext.", f"{MODULE}.")
    assert line("__init__", parameters)[: -len(") -> None")] == written[: written.index(", f: ")]


@pytest.mark.parametrize("name", CLASSES)
def test_every_recorded_constructor_survives_writing_and_parsing(name: str) -> None:
    doc = looks(RECORDED)["classes"][name]["init"]
    assert parse_signatures(doc, "__init__") == recorded_overloads(RECORDED[name])


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_are_the_same_however_they_are_written(value: float) -> None:
    assert same_default(repr(value), f"{value:.9g}")
    assert not same_default(repr(value), repr(value + 1 + abs(value)))


def test_recorded_defaults_are_python_text() -> None:
    parameters: list[dict[str, Any]] = [
        {"name": "a", "kind": "positional", "default": "required", "type": "int"},
        {"name": "b", "kind": "positional", "default": "", "type": "str"},
        {"name": "c", "kind": "keyword_only", "default": "X.A", "type": "X"},
        {"name": "d", "kind": "keyword_only", "default": {}, "type": "dict"},
    ]
    assert [p.default for p in recorded_signature(parameters)] == [None, "''", "X.A", "{}"]
