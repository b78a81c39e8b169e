"""Texts, and the spans of tokens that a model is asked about."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_client.data_files import DataFileError, read_json_lines, read_parquet, read_utf8
from mixtral_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Span:
    """What one request is about: the likelihood of `token_ids[first:]` after what is before; first is at least 1."""

    token_ids: Sequence[int]
    first: int

    @property
    def predicted(self) -> int:
        return len(self.token_ids) - self.first


def read_texts(path: Path) -> list[str]:
    """A `.jsonl` file has one object with a `text` per line, a `.parquet` file a column `text`; any other file is one
    text. Raises DataFileError naming the line or row that is something else."""
    if path.suffix == ".parquet":
        return list(_texts(read_parquet(path, ("text",), ())))
    if path.suffix == ".jsonl":
        return list(_texts(read_json_lines(path)))
    return [read_utf8(path)]


def _texts(records: Iterator[tuple[str, Any]]) -> Iterator[str]:
    for place, record in records:
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataFileError(f'{place} has no "text"')
        yield record["text"]


def cut_into_windows(texts: Iterable[Sequence[int]], context: int, stride: int | None = None) -> list[Span]:
    """texts: the token ids of each, with BOS in front. Each is cut by itself: a window has `context` tokens at most and
    begins `stride` after the one before (None: `context`); it predicts what no window before it has predicted.

    Without overlap the first token of a window is never predicted; with a smaller stride every token but the text's
    first is. Raises InvalidArgument when stride exceeds context, or when there is no token to predict.
    """
    stride = context if stride is None else stride
    if stride > context:
        raise InvalidArgument(f"the stride is {stride}, it must be at most the context, which is {context}")
    windows = []
    for ids in texts:
        done = 0  # tokens of the text that lie in a window already
        for start in range(0, len(ids), stride):
            window = ids[start : start + context]
            first = max(done - start, 1)
            if len(window) > first:
                windows.append(Span(window, first))
            done = start + len(window)
            if done == len(ids):
                break
    if not windows:
        raise InvalidArgument("the text has no token to predict, it needs at least two")
    return windows
