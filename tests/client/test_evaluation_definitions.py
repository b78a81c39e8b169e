"""`mixtral eval` and `mixtral-build evaluate` share no code, so this holds their definitions together: the same files
give the same texts and questions, and the same texts the same windows and answers, token for token."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_build import multiple_choice as build_multiple_choice
from mixtral_build import questions as build_questions
from mixtral_build import texts as build_texts
from mixtral_build import windows as build_windows
from mixtral_client.data_files import DataFileError
from mixtral_client.evaluation import multiple_choice, questions, texts
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tokenizer import encode_prompt, load_tokenizer

TOKENIZER = load_tokenizer(Path(__file__).parents[2] / "models" / "tiny-mixtral")
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(2, 12), st.integers(1, 12) | st.none())
def test_the_same_windows(written: list[str], context: int, stride: int | None) -> None:
    ids = [encode_prompt(TOKENIZER, text) if text else [] for text in written]  # as the server and the scorer do
    try:
        expected = build_windows.cut_into_windows(written, TOKENIZER, context, stride)
    except InvalidArgument as error:
        with pytest.raises(Exception, match=str(error)[:40]):
            texts.cut_into_windows(ids, context, stride)
        return
    found = texts.cut_into_windows(ids, context, stride)
    assert [span.token_ids for span in found] == expected.token_ids
    assert [span.first for span in found] == expected.first
    assert sum(span.predicted for span in found) == expected.predicted


class _Tokenizer:
    """In the place of the scorer: what the server would answer."""

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [encode_prompt(TOKENIZER, text) for text in texts]


@settings(max_examples=40, deadline=None)
@given(
    asked=TEXT,
    choices=st.lists(TEXT, min_size=2, max_size=6),
    subject=st.sampled_from([None, "high_school_birds"]),
    shots=st.integers(0, 3),
    limit=st.integers(80, 400),
)
def test_the_same_prompts_and_answers(
    asked: str, choices: list[str], subject: str | None, shots: int, limit: int
) -> None:
    fields: list[Any] = [asked, tuple(choices), 0, subject]
    theirs, ours = build_questions.Question(*fields), questions.Question(*fields)
    by_subject = {subject: [ours] * shots}
    fit = multiple_choice._fitting(_Tokenizer(), [ours], by_subject, shots, limit + 1)  # type: ignore[arg-type]
    try:
        expected = build_multiple_choice._Prompt.fitting(theirs, [theirs] * shots, TOKENIZER, limit)
    except InvalidArgument:
        with pytest.raises(Exception, match="tokens without any example"):
            asyncio.run(fit)
        return
    (found,) = asyncio.run(fit)
    assert found.shots == expected.shots
    assert [(span.first, span.token_ids) for span in found.answers] == expected.answers


GOOD_LINES: list[Any] = [
    {"question": "q", "choices": ["x", "y"], "answer": 1},
    {"question": "ü\u2028", "choices": ["1", "2", "3"], "answer": 0, "subject": "s"},
]
BAD_LINES: list[Any] = [
    {"question": "q", "choices": ["x"], "answer": 0},
    {"question": "q", "choices": ["x", "y"], "answer": 2},
    {"question": "q", "choices": ["x", "y"], "answer": True},
    {"question": 1, "choices": ["x", "y"], "answer": 0},
    {"question": "q", "choices": "xy", "answer": 0},
    {"question": "q", "choices": ["x", "y"], "answer": 0, "subject": 1},
    {"question": "q", "choices": ["x", "y"]},
    ["q"],
]


def write_json_lines(path: Path, *lines: Any) -> Path:
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def as_fields(found: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(q.question, q.choices, q.answer, q.subject) for q in found]


def test_the_same_questions_of_every_kind_of_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    write_json_lines(tmp_path / "a.jsonl", *GOOD_LINES)
    (tmp_path / "anatomy_test.csv").write_text('"a, ""b""",1,2,3,"4\n5",D\nr,1,2,3,4,A\n')
    columns = {"question": ["q"], "subject": ["s"], "choices": [["x", "y", "z", "w"]], "answer": [3]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "mmlu.parquet")
    found = questions.read_questions(tmp_path)
    assert len(found) == 5
    assert as_fields(found) == as_fields(build_questions.read_questions(tmp_path))


@pytest.mark.parametrize("line", BAD_LINES, ids=str)
def test_the_same_question_is_refused_with_the_same_words(tmp_path: Path, line: Any) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", GOOD_LINES[0], line)
    with pytest.raises(InvalidArgument) as expected:
        build_questions.read_questions(path)
    with pytest.raises(DataFileError) as found:
        questions.read_questions(path)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a_test.csv", "q,1,2,3,A\n"), ("a.csv", "q,1,2,3,4,E\n"), ("a.jsonl", "{"), ("a.txt", "q"), ("b.jsonl", "")],
)
def test_the_same_file_is_refused_with_the_same_words(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidArgument) as expected:
        build_questions.read_questions(tmp_path / name)
    with pytest.raises(DataFileError) as found:
        questions.read_questions(tmp_path / name)
    assert str(found.value) == str(expected.value)


def test_the_same_texts_of_every_kind_of_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "plain.txt").write_bytes("one\r\ntext é\n".encode())
    write_json_lines(tmp_path / "lines.jsonl", {"text": "a\u2028b", "kind": "x"}, {"text": ""})
    parquet.write_table(pyarrow.table({"text": ["c", "d"], "n": [1, 2]}), tmp_path / "table.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert texts.read_texts(path) == list(build_texts.read_texts(path))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"txt": 1}'), ("a.txt", b"\xff"), ("a.parquet", b"PAR")])
def test_files_that_hold_no_text_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument):
        list(build_texts.read_texts(tmp_path / name))
    with pytest.raises(DataFileError, match=name):
        texts.read_texts(tmp_path / name)
