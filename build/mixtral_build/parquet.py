"""Reading Parquet, for which pyarrow must be installed; nothing else here needs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_runtime.errors import InvalidArgument


def read_rows(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The rows with these columns as Python objects; those of `optional` that the file has not are left out.

    Raises InvalidArgument when pyarrow is missing, the file is not Parquet, or a required column is not in it.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InvalidArgument(f"{path} needs pyarrow to be read ({error}); install it, or give JSON Lines") from error
    try:
        with ParquetFile(path) as file:
            columns = set(file.schema_arrow.names)
            for name in required:
                if name not in columns:
                    raise InvalidArgument(f"{path} has no column {name}, it has {', '.join(sorted(columns))}")
            wanted = [name for name in (*required, *optional) if name in columns]
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise InvalidArgument(f"{path} is not a Parquet file ({error})") from error
