"""Prompts from JSONL and Parquet files, whose fields say what they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_client.errors import MixtralClientError

_HUMAN = ("human", "user")


class PromptsFileError(MixtralClientError):
    """A prompts file cannot be used; the sentence names the file and the line or row."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one JSON object per line, or Parquet by its name's ending.

    Understood are Dolly's fields (`instruction`, `context`), where the context follows the instruction after an empty
    line; ShareGPT's `conversations` [{"from": "human", "value": …}, …], of which the first human turn is the prompt, as
    benchmarks with it commonly do; and a plain `prompt`. Records without a human turn or with an empty prompt are an
    error, and so is a file without records. Raises PromptsFileError.
    """
    try:
        records = list(_parquet(path) if path.suffix == ".parquet" else _jsonl(path))
    except OSError as error:
        raise PromptsFileError(f"{path}: {error.strerror or error}") from error
    if not records:
        raise PromptsFileError(f"{path} has no prompts")
    return [_prompt(record, place) for record, place in records]


def _jsonl(path: Path) -> Iterator[tuple[Any, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(_decoded(lines, path), 1):
            if line.strip():
                try:
                    yield json.loads(line), f"{path}, line {number}"
                except ValueError as error:
                    raise PromptsFileError(f"{path}, line {number} is not JSON: {error}") from error


def _decoded(lines: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise PromptsFileError(f"{path} is neither UTF-8 text nor named .parquet") from error


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PromptsFileError(f"{path} is Parquet, which needs the package pyarrow (extra `parquet`)") from error
    try:
        with path.open("rb") as file:
            table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise PromptsFileError(f"{path} is not Parquet: {error}") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield row, f"{path}, row {number}"


def _prompt(record: Any, place: str) -> str:
    if not isinstance(record, dict):
        raise PromptsFileError(f"{place} is {type(record).__name__}, it must be a JSON object")
    if "instruction" in record:
        parts = [_text(record, "instruction", place), _text(record, "context", place)]
        prompt = "\n\n".join(part for part in parts if part)
    elif "conversations" in record:
        prompt = _first_human_turn(record["conversations"], place)
    elif "prompt" in record:
        prompt = _text(record, "prompt", place)
    else:
        fields = ", ".join(sorted(map(str, record))) or "none"
        raise PromptsFileError(f"{place} has the fields {fields}; it needs instruction, conversations or prompt")
    if not prompt:
        raise PromptsFileError(f"{place} has an empty prompt")
    return prompt


def _text(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name) or ""
    if not isinstance(value, str):
        raise PromptsFileError(f"{place}: {name} is {type(value).__name__}, it must be a string")
    return value.strip()


def _first_human_turn(turns: Any, place: str) -> str:
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") in _HUMAN:
            return _text(turn, "value", place)
    raise PromptsFileError(f"{place} has no human turn in its conversations")
