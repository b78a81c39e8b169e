"""Prompts from JSONL and Parquet files, whose fields say what they are."""

from pathlib import Path
from typing import Any

from mixtral_client.data_files import DataFileError, read_json_lines, read_parquet

_HUMAN = ("human", "user")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one JSON object per line, or Parquet by its name's ending.

    Understood are Dolly's fields (`instruction`, `context`), where the context follows the instruction after an empty
    line; ShareGPT's `conversations` [{"from": "human", "value": …}, …], of which the first human turn is the prompt, as
    benchmarks with it commonly do; and a plain `prompt`. Records without a human turn or with an empty prompt are an
    error, and so is a file without records. Raises DataFileError.
    """
    read = read_parquet if path.suffix == ".parquet" else read_json_lines
    prompts = [_prompt(record, place) for place, record in read(path)]
    if not prompts:
        raise DataFileError(f"{path} has no prompts")
    return prompts


def _prompt(record: Any, place: str) -> str:
    if not isinstance(record, dict):
        raise DataFileError(f"{place} is {type(record).__name__}, it must be a JSON object")
    if "instruction" in record:
        parts = [_text(record, "instruction", place), _text(record, "context", place)]
        prompt = "\n\n".join(part for part in parts if part)
    elif "conversations" in record:
        prompt = _first_human_turn(record["conversations"], place)
    elif "prompt" in record:
        prompt = _text(record, "prompt", place)
    else:
        fields = ", ".join(sorted(map(str, record))) or "none"
        raise DataFileError(f"{place} has the fields {fields}; it needs instruction, conversations or prompt")
    if not prompt:
        raise DataFileError(f"{place} has an empty prompt")
    return prompt


def _text(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name) or ""
    if not isinstance(value, str):
        raise DataFileError(f"{place}: {name} is {type(value).__name__}, it must be a string")
    return value.strip()


def _first_human_turn(turns: Any, place: str) -> str:
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") in _HUMAN:
            return _text(turn, "value", place)
    raise DataFileError(f"{place} has no human turn in its conversations")
