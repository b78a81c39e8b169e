"""`trtllm-build --help` against the recorded flags, on real argparse programs that have them."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from container_check.check import Failed, NotAvailable
from container_check.difference import Difference, Weight
from container_check.flags import Flag, check, compare, parse_help, recorded_flags, used_flags
from container_check.machine import look_around
from container_check.workplace import Workplace
from hypothesis import given
from hypothesis import strategies as st
from trtllm_build_help import program

RECORD = recorded_flags()
SUPPORT = str(Path(__file__).resolve().parents[1] / "support")
USED = {"--gemm_plugin": {"auto", "disable"}, "--max_batch_size": {"16"}, "--kv_cache_type": {"paged"}}
CHANGES = st.sampled_from(["remove", "choice", "default", "store_true"])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "4000")  # as the check sets it


def found(change: Any) -> list[str]:
    """change: told a copy of the record, to change what the program has."""
    record = copy.deepcopy(RECORD)
    change(record)
    return sorted(map(str, compare(RECORD, parse_help(program(record).format_help()), USED)))


def test_every_recorded_flag_is_read_from_a_help_page() -> None:
    assert found(lambda record: None) == []
    flags = parse_help(program(RECORD).format_help())
    assert set(RECORD) < set(flags)
    assert flags["--max_seq_len"] == flags["--max_decoder_seq_len"]
    assert flags["--dry_run"] == Flag(("--dry_run",), None, False, "False")
    assert flags["--gemm_plugin"].choices == tuple(RECORD["--gemm_plugin"]["choices"])
    assert flags["--kv_cache_type"].default is None
    assert flags["--lora_dir"].takes_value


def test_a_help_page_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should COLUMNS be ignored, help may be broken into lines, but flags are still found."""
    monkeypatch.setenv("COLUMNS", "80")
    assert set(RECORD) < set(parse_help(program(RECORD).format_help()))


def test_flags_that_are_gone_or_new() -> None:
    def change(record: dict[str, Any]) -> None:
        del record["--max_batch_size"], record["--dry_run"]
        record["--max_seq_len"]["aliases"] = []
        record["--novel"] = {"type": "str", "choices": None, "default": None}

    assert found(change) == [
        "affects us: --max_batch_size is missing",
        "harmless: --dry_run is missing",
        "harmless: --max_decoder_seq_len is missing",
        "harmless: --novel is new",
    ]


def test_choices_that_are_gone_or_new() -> None:
    def change(record: dict[str, Any]) -> None:
        record["--gemm_plugin"]["choices"] = ["auto", "float16", "novel"]
        record["--nccl_plugin"]["choices"].remove("int32")
        record["--kv_cache_type"] = {"type": "str", "choices": ["continuous"], "default": "SUPPRESS"}

    lines = found(change)
    assert "affects us: --gemm_plugin does not take disable any more" in lines
    assert "harmless: --gemm_plugin does not take int32 any more" in lines
    assert "harmless: --gemm_plugin takes novel too" in lines
    assert "harmless: --nccl_plugin does not take int32 any more" in lines
    assert "affects us: --kv_cache_type does not take paged any more" in lines


def test_a_choice_list_where_none_was_recorded() -> None:
    there = parse_help(program(RECORD).format_help()) | {
        "--max_batch_size": Flag(("--max_batch_size",), ("8",), True, "8")
    }
    lines = list(map(str, compare(RECORD, there, USED)))
    assert "affects us: --max_batch_size takes only 8, we give 16" in lines


def test_defaults_that_changed() -> None:
    def change(record: dict[str, Any]) -> None:
        record["--max_batch_size"]["default"] = 4096
        record["--reduce_fusion"]["default"] = "enable"

    assert found(change) == [
        "harmless: --max_batch_size has the default 4096, 2048 was recorded",  # we always give it
        "note: --reduce_fusion has the default enable, disable was recorded",  # we leave it out
    ]


def test_a_flag_that_takes_a_value_now_or_none_any_more() -> None:
    def change(record: dict[str, Any]) -> None:
        record["--dry_run"]["type"] = "str"
        record["--gemm_plugin"]["type"] = "store_true"

    assert found(change) == [
        "affects us: --gemm_plugin takes no value any more",
        "harmless: --dry_run takes a value now",
    ]


@given(name=st.sampled_from(sorted(RECORD)), how=CHANGES)
def test_any_single_change_is_noticed_and_names_the_flag(name: str, how: str) -> None:
    def change(record: dict[str, Any]) -> None:
        flag = record[name]
        if how == "remove":
            del record[name]
        elif how == "choice":
            if flag["type"] in ("store_true", "KVCacheType"):
                flag["type"] = "str"
            flag["choices"] = [*(flag["choices"] or []), "novel"]
        elif how == "default":
            flag["default"] = "novel" if flag["type"] == "str" else 12345
        else:
            flag["type"] = "int" if flag["type"] == "store_true" else "store_true"
            flag["choices"] = None

    lines = found(change)
    unseen = how == "choice" and RECORD[name]["choices"] is None and name not in USED
    assert unseen or any(name in line for line in lines)


def test_the_flags_we_use_are_those_of_our_command_lines(demo_model: Path) -> None:
    used = used_flags(demo_model)
    assert used["--gemm_plugin"] == {"auto", "disable"}
    assert used["--use_fp8_context_fmha"] == {"enable", "disable"}
    assert {"--checkpoint_dir", "--input_timing_cache", "--max_num_tokens"} <= set(used)


def put_program(folder: Path, source: str) -> Path:
    folder.mkdir()
    path = folder / "trtllm-build"
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return folder


def workplace(tmp_path: Path, demo_model: Path, path: str) -> Workplace:
    folder = tmp_path / "work"
    return Workplace(folder, demo_model, look_around(), environment={"PATH": path})


def test_a_program_on_path_is_asked_and_compared(tmp_path: Path, demo_model: Path) -> None:
    record = {name: flag for name, flag in RECORD.items() if name != "--max_beam_width"}
    source = (
        f"import json, sys\nsys.path.insert(0, {SUPPORT!r})\nfrom trtllm_build_help import program\n"
        "print('[TensorRT-LLM] a banner, as the real one has')\n"
        f"program(json.loads({json.dumps(record)!r})).parse_args()\n"
    )
    place = workplace(tmp_path, demo_model, f"{put_program(tmp_path / 'bin', source)}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Failed) as failure:
        check(place)
    assert failure.value.args[0] == "affects us: --max_beam_width is missing"
    assert failure.value.args[1].startswith("67 flags compared, ")
    assert (place.folder / "trtllm-build-help.log").is_file()


def test_a_program_that_fails_says_its_last_words(tmp_path: Path, demo_model: Path) -> None:
    folder = put_program(tmp_path / "bin", "raise SystemExit('libnvinfer.so.10: cannot open')")
    with pytest.raises(Failed) as failure:
        check(workplace(tmp_path, demo_model, f"{folder}{os.pathsep}{os.environ['PATH']}"))
    assert failure.value.args[1:] == ("libnvinfer.so.10: cannot open",)


def test_without_the_program_nothing_is_known(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(NotAvailable, match="trtllm-build is not on PATH"):
        check(workplace(tmp_path, demo_model, str(tmp_path)))


def test_differences_are_sorted_by_weight() -> None:
    lines = [Difference(Weight.HARMLESS, "a"), Difference(Weight.AFFECTS_US, "z"), Difference(Weight.NOTE, "b")]
    assert [str(line) for line in sorted(lines)] == ["affects us: z", "note: b", "harmless: a"]
