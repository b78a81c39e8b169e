"""Prompts files: three kinds of records, two kinds of files, and what cannot be used is named with its place."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mixtral_client.bench.prompts_file import read_prompts
from mixtral_client.data_files import DataFileError

DOLLY: list[dict[str, Any]] = [
    {"instruction": "Why is the sky blue?", "context": "", "response": "Because.", "category": "open_qa"},
    {"instruction": "Sum up.", "context": "A long text.", "response": "Short.", "category": "summarization"},
]
SHAREGPT = [{"id": "a", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}]


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_dolly_s_context_follows_the_instruction(tmp_path: Path) -> None:
    expected = ["Why is the sky blue?", "Sum up.\n\nA long text."]
    assert read_prompts(jsonl(tmp_path / "dolly.jsonl", DOLLY)) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(DOLLY), tmp_path / "dolly.parquet")
    assert read_prompts(tmp_path / "dolly.parquet") == expected


def test_of_a_conversation_the_first_human_turn_is_asked(tmp_path: Path) -> None:
    late = {"conversations": [{"from": "gpt", "value": "Welcome"}, {"from": "human", "value": "Bye"}]}
    assert read_prompts(jsonl(tmp_path / "chats.jsonl", [*SHAREGPT, late])) == ["Hello", "Bye"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SHAREGPT), tmp_path / "chats.parquet")
    assert read_prompts(tmp_path / "chats.parquet") == ["Hello"]


def test_plain_prompts_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"prompt": "two", "id": 7}\n')
    assert read_prompts(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{', "line 2 is not JSON"),
        ('{"text": "a", "id": 1}', "line 1 has the fields id, text; it needs instruction, conversations or prompt"),
        ('{"prompt": " "}', "line 1 has an empty prompt"),
        ('{"prompt": 5}', "line 1: prompt is int, it must be a string"),
        ("[1]", "line 1 is list, it must be a JSON object"),
        ('{"conversations": [{"from": "gpt", "value": "Hi"}]}', "line 1 has no human turn"),
        ('{"conversations": "Hi"}', "line 1 has no human turn"),
        ("", "has no prompts"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DataFileError, match=message):
        read_prompts(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="No such file"):
        read_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(DataFileError, match="No such file"):
        read_prompts(tmp_path / "missing.parquet")
    (tmp_path / "binary.jsonl").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(DataFileError, match="is not UTF-8 text"):
        read_prompts(tmp_path / "binary.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataFileError, match="Is a directory"):
        read_prompts(tmp_path / "folder.jsonl")
    (tmp_path / "text.parquet").write_text("{}")
    with pytest.raises(DataFileError, match="is not a Parquet file"):
        read_prompts(tmp_path / "text.parquet")
