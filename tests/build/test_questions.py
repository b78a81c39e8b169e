"""Multiple-choice questions from the files that users have."""

import json
from pathlib import Path

import pytest

from mixtral_build.questions import Question, read_questions
from mixtral_runtime.errors import InvalidArgument

ALGEBRA = Question('What is "x", if x, y = 1?', ("1", "2, or 3", "a\nb", "0"), 2, "abstract_algebra")


def write_json_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_mmlu_csv_has_no_header_and_its_subject_in_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "abstract_algebra_test.csv"
    path.write_text('"What is ""x"", if x, y = 1?",1,"2, or 3","a\nb",0,C\n')
    assert read_questions(path) == [ALGEBRA]


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    for subject in ("b", "a"):
        (tmp_path / f"{subject}_dev.csv").write_text("q,1,2,3,4,A\nr,1,2,3,4,D\n")
    (tmp_path / "README.txt").write_text("not a question")
    found = read_questions(tmp_path)
    assert [(q.subject, q.question, q.answer) for q in found] == [
        ("a", "q", 0),
        ("a", "r", 3),
        ("b", "q", 0),
        ("b", "r", 3),
    ]


def test_json_lines_may_have_any_number_of_choices_and_no_subject(tmp_path: Path) -> None:
    lines = (
        {"question": "q", "choices": ["x", "y"], "answer": 1},
        {
            "question": "ü",
            "choices": ["1", "2", "3", "4", "5"],
            "answer": 4,
            "subject": "s",
        },
    )
    path = write_json_lines(tmp_path / "a.jsonl", *lines)
    assert read_questions(path) == [Question("q", ("x", "y"), 1), Question("ü", ("1", "2", "3", "4", "5"), 4, "s")]


def test_mmlu_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "question": [ALGEBRA.question],
        "subject": [ALGEBRA.subject],
        "choices": [list(ALGEBRA.choices)],
        "answer": [ALGEBRA.answer],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    assert read_questions(tmp_path / "test.parquet") == [ALGEBRA]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q,1,2,3,A\n", "row 1 has 5 columns, it must have 6"),
        ("question,A,B,C,D,answer\n", "row 1: the answer is 'answer', there are 4 choices"),
        ("q,1,2,3,4,E\n", "row 1: the answer is 'E'"),
        ("q,1,2,3,4,\n", "row 1: the answer is ''"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(row)
    with pytest.raises(InvalidArgument, match=message):
        read_questions(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "line 1: the answer is 2, there are 2 choices"),
        ({"answer": "A"}, "line 1: the answer is 'A'"),
        ({"answer": True}, "line 1: the answer is True"),
        ({"choices": ["x"]}, "line 1 has 1 choices, it must have from 2 to 26"),
        ({"choices": "xy"}, "line 1: choices is 'xy', it must be a list of texts"),
        ({"question": None}, "line 1: the question is None"),
        ({"subject": 3}, "line 1: the subject is 3"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", {"question": "q", "choices": ["x", "y"], "answer": 0} | change)
    with pytest.raises(InvalidArgument, match=message):
        read_questions(path)


def test_other_files_and_empty_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("q")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InvalidArgument, match=r"a\.txt is none of \.csv, \.parquet, \.jsonl"):
        read_questions(tmp_path / "a.txt")
    with pytest.raises(InvalidArgument, match=r"a\.csv has no question"):
        read_questions(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(InvalidArgument, match=r"b\.jsonl line 1 has no choices"):
        read_questions(tmp_path / "b.jsonl")
