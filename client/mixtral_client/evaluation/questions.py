"""Multiple-choice questions from MMLU's CSV and Parquet files, and from JSON Lines, and their prompts."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_client.data_files import DataFileError, read_json_lines, read_parquet, read_utf8
from mixtral_client.errors import InvalidArgument

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
    Raises DataFileError naming the file and the line or row that is something else.
    """
    paths = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    questions = [question for file in paths for question in _read(file)]
    if not questions:
        raise DataFileError(f"{path} has no question")
    return questions


def render(question: Question, examples: Sequence[Question]) -> str:
    """The prompt up to `Answer:`, as in MMLU (Hendrycks et al. 2021, arXiv:2009.03300): a heading with the subject,
    examples with their answers, and the question. An answer is a space and a letter."""
    about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
    parts = [f"The following are multiple choice questions (with answers){about}.\n\n"]
    parts += [f"{_body(example)} {LETTERS[example.answer]}\n\n" for example in examples]
    return "".join(parts) + _body(question)


def examples_by_subject(
    questions: Sequence[Question], examples: Sequence[Question], shots: int
) -> dict[str | None, list[Question]]:
    """The first `shots` examples of each subject. Raises InvalidArgument for a subject that has fewer."""
    found: dict[str | None, list[Question]] = defaultdict(list)
    for example in examples:
        found[example.subject].append(example)
    for subject in {question.subject for question in questions}:
        if len(found[subject]) < shots:
            raise InvalidArgument(
                f"the subject {subject or '(none)'} has {len(found[subject])} examples, --shots asks for {shots}"
            )
        found[subject] = found[subject][:shots]
    return found


def _body(question: Question) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.question}\n{choices}Answer:"


def _read(path: Path) -> Iterator[Question]:
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".parquet":
        return _from_objects(read_parquet(path, ("question", "choices", "answer"), ("subject",)))
    if path.suffix == ".jsonl":
        return _from_objects(read_json_lines(path))
    raise DataFileError(f"{path} is none of {', '.join(SUFFIXES)}")


def _read_csv(path: Path) -> Iterator[Question]:
    subject = path.stem
    for split in ("_test", "_val", "_dev"):
        subject = subject.removesuffix(split)
    for number, row in enumerate(csv.reader(io.StringIO(read_utf8(path), newline="")), start=1):
        place = f"{path} row {number}"
        if len(row) != CSV_CHOICES + 2:
            raise DataFileError(f"{place} has {len(row)} columns, it must have {CSV_CHOICES + 2}")
        letter = row[-1].strip()
        answer = LETTERS.find(letter) if len(letter) == 1 else -1
        yield _question(place, row[0], row[1:-1], answer, subject, shown=letter)


def _from_objects(objects: Iterable[tuple[str, Any]]) -> Iterator[Question]:
    for place, value in objects:
        if not isinstance(value, dict):
            raise DataFileError(f"{place} is not an object")
        for key in ("question", "choices", "answer"):
            if key not in value:
                raise DataFileError(f"{place} has no {key}")
        yield _question(place, value["question"], value["choices"], value["answer"], value.get("subject"))


def _question(
    place: str, question: object, choices: object, answer: object, subject: object, shown: object = None
) -> Question:
    """shown: how the file gives the answer, where it is not its index."""
    if not isinstance(question, str):
        raise DataFileError(f"{place}: the question is {question!r}, it must be a text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataFileError(f"{place}: choices is {choices!r}, it must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataFileError(f"{place} has {len(choices)} choices, it must have from 2 to {len(LETTERS)}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        given = answer if shown is None else shown
        raise DataFileError(f"{place}: the answer is {given!r}, there are {len(choices)} choices")
    if subject is not None and not isinstance(subject, str):
        raise DataFileError(f"{place}: the subject is {subject!r}, it must be a text")
    return Question(question, tuple(choices), answer, subject)
