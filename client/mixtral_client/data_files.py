"""Data files as users have them, record by record: plain text, JSON Lines, Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_client.errors import MixtralClientError


class DataFileError(MixtralClientError):
    """A file of texts, questions or prompts cannot be used; the sentence names the file and the line or row."""


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) for each line that is not blank. Raises DataFileError naming a line that is not JSON."""
    # Not splitlines, which also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            yield place, json.loads(line)
        except ValueError as error:
            raise DataFileError(f"{place} is not JSON ({error})") from error


def read_parquet(
    path: Path, required: tuple[str, ...] = (), optional: tuple[str, ...] | None = None
) -> Iterator[tuple[str, Any]]:
    """(place, row) with these columns; those of `optional` that the file has not are left out, None takes all it has.

    Raises DataFileError when pyarrow is missing, the file cannot be read or is not Parquet, or a required column is not
    in it.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataFileError(f"{path} needs pyarrow to be read ({error}); install it, or give JSON Lines") from error
    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            for name in required:
                if name not in columns:
                    raise DataFileError(f"{path} has no column {name}, it has {', '.join(sorted(columns))}")
            wanted = columns if optional is None else [n for n in (*required, *optional) if n in columns]
            rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path} row {number}", row
    except ArrowException as error:
        raise DataFileError(f"{path} is not a Parquet file ({error})") from error
    except OSError as error:
        raise DataFileError(f"{path}: {error.strerror or error}") from error


def read_utf8(path: Path) -> str:
    """Raises DataFileError for a file that cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")  # as it is: reading as text would change the ends of lines
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise DataFileError(f"{path}: {error.strerror or error}") from error
