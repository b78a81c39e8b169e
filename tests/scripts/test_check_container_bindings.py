"""Bindings that are imported in a process of their own, described there and compared with the record."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from container_check.bindings import RECORD, imports, signatures
from container_check.check import Failed, Status
from container_check.machine import Machine, look_around
from container_check.workplace import Workplace
from nanobind_docs import MODULE, looks, write_stand_in

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
CLASSES = sorted(name for name, entry in RECORDED.items() if "init" in entry)


@pytest.fixture
def machine() -> Machine:
    return look_around()


def workplace(tmp_path: Path, machine: Machine, modules: Path | None, model: Path) -> Workplace:
    environment = {"PYTHONPATH": str(modules)} if modules else {}
    folder = tmp_path / "work"
    folder.mkdir()
    return Workplace(folder, model, machine, library="stand_in", bindings=MODULE, environment=environment)


def test_a_module_is_imported_described_and_compared(tmp_path: Path, machine: Machine, demo_model: Path) -> None:
    """The whole way, on a module that looks like the recorded bindings but for one argument."""
    record = copy.deepcopy(RECORDED)
    record["Request"]["init"] = [p for p in record["Request"]["init"] if p["name"] != "cache_salt_id"]
    place = workplace(tmp_path, machine, write_stand_in(tmp_path / "modules", looks(record)), demo_model)
    outcome = imports(place)
    assert outcome.status == Status.PASS
    assert outcome.details[0].startswith("stand_in 1.2.1, ")
    described = json.loads((place.folder / "bindings.json").read_text())
    expected = looks(record)
    assert described["enums"] == expected["enums"]
    assert described["functions"].keys() == expected["functions"].keys()
    for name, found in described["classes"].items():
        assert found == expected["classes"][name], name
    lines = signatures(place).details
    assert "harmless: Request() has no argument cache_salt_id any more" in lines
    assert lines[-1] == f"{len(CLASSES)} classes and {len(RECORDED['enums'])} enums compared"


@pytest.mark.parametrize(
    ("source", "said", "advised"),
    [
        ("from openai.types.responses import PartReasoningText", "ImportError", "pip install -U openai"),
        ("raise OSError('libcuda.so.1: cannot open')", "OSError: libcuda.so.1: cannot open", "fresh container"),
    ],
)
def test_an_import_that_fails(
    tmp_path: Path, machine: Machine, demo_model: Path, source: str, said: str, advised: str
) -> None:
    modules = tmp_path / "modules"
    (modules / "openai" / "types").mkdir(parents=True)
    (modules / "openai" / "types" / "responses.py").write_text("")  # an old one
    (modules / "stand_in.py").write_text(source)
    with pytest.raises(Failed) as failure:
        imports(workplace(tmp_path, machine, modules, demo_model))
    assert said in failure.value.args[0]
    assert failure.value.advice is not None
    assert advised in failure.value.advice


def test_a_library_that_ends_the_process(tmp_path: Path, machine: Machine, demo_model: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in.py").write_text("import os\nprint('last words', flush=True)\nos.abort()")
    with pytest.raises(Failed) as failure:
        imports(workplace(tmp_path, machine, modules, demo_model))
    assert failure.value.args == ("importing it ended with status -6, its last lines:", "last words")
