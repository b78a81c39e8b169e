"""Multiple-choice questions from MMLU's CSV and Parquet files, and from JSON Lines."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_build.parquet import read_rows
from mixtral_build.texts import read_json_lines, read_utf8
from mixtral_runtime.errors import InvalidArgument

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CSV_CHOICES = 4  # MMLU's own: question, A, B, C, D, answer
SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class Question:
    """answer: index of the right one among `choices`, of which there are 2 to 26."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None


def read_questions(path: Path) -> list[Question]:
    """A file, or all files of these kinds in a folder:

    `.csv`: MMLU's original release, without a header: question, A, B, C, D, letter of the answer; the subject is the
    file's name without `_test`, `_val` or `_dev`. `.parquet`: MMLU's columns question, subject, choices and answer,
    which is an index. `.jsonl`: {"question": "...", "choices": ["...", ...], "answer": 0, "subject": "..."};
    the subject may be missing.
    Raises InvalidArgument naming the file and the line or row that is something else.
    """
    paths = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_json_lines}
    questions: list[Question] = []
    for file in paths:
        if file.suffix not in readers:
            raise InvalidArgument(f"{file} is none of {', '.join(SUFFIXES)}")
        questions += readers[file.suffix](file)
    if not questions:
        raise InvalidArgument(f"{path} has no question")
    return questions


def _read_csv(path: Path) -> Iterator[Question]:
    subject = path.stem
    for split in ("_test", "_val", "_dev"):
        subject = subject.removesuffix(split)
    for number, row in enumerate(csv.reader(io.StringIO(read_utf8(path), newline="")), start=1):
        where = f"{path} row {number}"
        if len(row) != CSV_CHOICES + 2:
            raise InvalidArgument(f"{where} has {len(row)} columns, it must have {CSV_CHOICES + 2}")
        letter = row[-1].strip()
        answer = LETTERS.find(letter) if len(letter) == 1 else -1
        yield _question(where, row[0], row[1:-1], answer, subject, shown=letter)


def _read_parquet(path: Path) -> Iterator[Question]:
    rows = read_rows(path, ("question", "choices", "answer"), ("subject",))
    return _from_objects(((f"{path} row {number}", row) for number, row in enumerate(rows, start=1)))


def _read_json_lines(path: Path) -> Iterator[Question]:
    return _from_objects((f"{path} line {number}", line) for number, line in read_json_lines(path))


def _from_objects(objects: Iterable[tuple[str, Any]]) -> Iterator[Question]:
    for where, value in objects:
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where} is not an object")
        for key in ("question", "choices", "answer"):
            if key not in value:
                raise InvalidArgument(f"{where} has no {key}")
        yield _question(where, value["question"], value["choices"], value["answer"], value.get("subject"))


def _question(
    where: str, question: object, choices: object, answer: object, subject: object, shown: object = None
) -> Question:
    """shown: how the file gives the answer, where it is not its index."""
    if not isinstance(question, str):
        raise InvalidArgument(f"{where}: the question is {question!r}, it must be a text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InvalidArgument(f"{where}: choices is {choices!r}, it must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise InvalidArgument(f"{where} has {len(choices)} choices, it must have from 2 to {len(LETTERS)}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        given = answer if shown is None else shown
        raise InvalidArgument(f"{where}: the answer is {given!r}, there are {len(choices)} choices")
    if subject is not None and not isinstance(subject, str):
        raise InvalidArgument(f"{where}: the subject is {subject!r}, it must be a text")
    return Question(question, tuple(choices), answer, subject)
