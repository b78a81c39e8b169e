"""Texts as `evaluate` and `compare` read them from files."""

import json
from pathlib import Path

import pytest

from mixtral_build.texts import read_texts
from mixtral_runtime.errors import InvalidArgument


def test_json_lines_are_several_texts_and_other_files_one(tmp_path: Path) -> None:
    lines = '{"text": "one", "kind": "x"}\n\n{"text": "two\\nlines\u2028and more"}\n'
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    assert list(read_texts(tmp_path / "a.jsonl")) == ["one", "two\nlines\u2028and more"]
    assert list(read_texts(tmp_path / "a.txt")) == ["one\r\ntwo\n"]


@pytest.mark.parametrize("line", ['{"prompt": "x"}', '{"text": 1}', "[1]"])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(InvalidArgument, match=r'a\.jsonl line 2 is not a JSON object with a "text"'):
        list(read_texts(tmp_path / "a.jsonl"))


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("text\n")
    with pytest.raises(InvalidArgument, match=r"a\.jsonl line 1 is not JSON"):
        list(read_texts(tmp_path / "a.jsonl"))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


def test_a_parquet_column_is_several_texts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), tmp_path / "a.parquet")
    assert list(read_texts(tmp_path / "a.parquet")) == ["one", "two"]
    parquet.write_table(pyarrow.table({"content": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidArgument, match="has no column text, it has content"):
        list(read_texts(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_text("one")
    with pytest.raises(InvalidArgument, match="is not a Parquet file"):
        list(read_texts(tmp_path / "c.parquet"))
