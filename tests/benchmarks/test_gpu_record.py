"""The result file of a GPU run: valid at every moment, whatever fails."""

import json
from pathlib import Path

import pytest
import torch
from gpu_record import Record
from gpu_timing import copy_bandwidth, matrix_flops, time_calls

CPU = torch.device("cpu")


def read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text())
    return found


def fail(reason: str) -> None:
    raise RuntimeError(reason)


def test_a_run_that_is_killed_leaves_what_it_had(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "gpu.json", {"machine": {}}, 100.0)
    assert read(tmp_path / "new" / "gpu.json")["complete"] is False
    record.add("loads", {"batch": 1})
    assert read(tmp_path / "new" / "gpu.json")["loads"] == [{"batch": 1}]
    record.finish()
    assert read(tmp_path / "new" / "gpu.json")["complete"] is True


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path / "gpu.json", {}, 100.0)
    with record.part("first"):
        fail("out of memory")
    with record.part("second"):
        record.add("loads", {"batch": 1})
    assert record.failed == ["first"]
    assert [part["error"] for part in record.data["parts"]] == ["RuntimeError: out of memory", None]
    assert "s of 100] first: RuntimeError: out of memory" in capsys.readouterr().err


def test_a_part_without_time_is_left_out_and_no_failure(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json", {}, 5.0)
    with record.part("long"):
        record.need(30.0)
        fail("not reached")
    assert record.failed == []
    assert record.data["left_out"] == [{"what": "long", "reason": "5 s are left of 5, this takes about 30"}]


def test_timings_are_of_one_call_and_ceilings_are_positive() -> None:
    calls: list[int] = []
    timing = time_calls([lambda: calls.append(1), lambda: calls.append(2)], CPU, for_s=0.0)
    assert calls.count(1) == calls.count(2) > 2
    assert not timing.graph
    assert timing.seconds > 0
    assert copy_bandwidth(CPU, 1 << 16) > 0
    assert matrix_flops(CPU, torch.bfloat16, 32) > 0
