"""Texts as users have them: a plain file, JSON Lines or Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_build.parquet import read_rows
from mixtral_runtime.errors import InvalidArgument


def read_texts(path: Path) -> Iterator[str]:
    """A `.jsonl` file has one object with a `text` per line, a `.parquet` file a column `text`; any other file is one
    text. Raises InvalidArgument naming the line or row that is something else."""
    if path.suffix == ".parquet":
        for number, row in enumerate(read_rows(path, ("text",)), start=1):
            if not isinstance(row["text"], str):
                raise InvalidArgument(f"{path} row {number} has no text")
            yield row["text"]
    elif path.suffix == ".jsonl":
        for number, line in read_json_lines(path):
            if not isinstance(line, dict) or not isinstance(line.get("text"), str):
                raise InvalidArgument(f'{path} line {number} is not a JSON object with a "text"')
            yield line["text"]
    else:
        yield read_utf8(path)


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value). Blank lines are skipped. Raises InvalidArgument naming a line that is not JSON."""
    # Not splitlines, which also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidArgument(f"{path} line {number} is not JSON ({error})") from error
        yield number, value


def read_utf8(path: Path) -> str:
    """Raises InvalidArgument for a file that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")  # as it is: reading as text would change the ends of lines
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text") from error
