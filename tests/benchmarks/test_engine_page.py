"""docs/engine.md shows the result file of the engine's benchmark, to the digit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from engine_page import BEGIN, END, NOTHING, PAGE, RESULTS, main, render, results_text
from engine_report import Measurement, Phase, ratios
from engine_tables import details, summary

ROOT = Path(__file__).resolve().parents[2]


def measured(phase: Phase, size: int, runner: str, *tokens_per_s: float) -> Measurement:
    return Measurement("random", phase, size, runner, list(tokens_per_s), 100.0)


def report() -> dict[str, Any]:
    measurements = [
        measured("decode", 1, "int8", 60.0, 66.0, 72.0),
        measured("decode", 1, "llama.cpp", 60.0, 60.0, 60.0),
        measured("decode", 1, "memory", 100.0, 100.0, 100.0),
        measured("prefill", 512, "int8", 900.0, 900.0, 900.0),
        measured("prefill", 512, "llama.cpp", 300.0, 300.0, 300.0),
        measured("prefill", 512, "memory", 4000.0, 4000.0, 4000.0),
    ]
    figures = {"ttft_s": 0.05, "decode_tokens_per_s": 50.0, "total_tokens_per_s": 90.0}
    versions = {"mixtral-triton": "0.1.0", "torch": "2.13.0"}
    steps = {"decode, batch 1": {"step_ms": 16.0, "parts_ms": {"int8_experts": 12.0, "attention": 2.0, "copy": 0.1}}}
    return {
        "machine": {"processor": "Some Processor", "cores": 2, "python": "3.11.7", "versions": {"numpy": "1.26.4"}},
        "settings": {"rounds": 3, "steps": 16, "context_tokens": 32, "threads": 2, "idle_wait_s": 20.0},
        "idle": {"waited_s": 3.0, "turns_idle": 17, "turns_not_idle": 1},
        "runners": {
            "int8": {"versions": versions, "kernels": "amx"},
            "llama.cpp": {
                "versions": {"llama-cpp-python": "0.3.36"},
                "compiler": "clang version 19",
                "build": "CPU : AMX_INT8 = 1",
            },
        },
        "skipped": {"transformers": "transformers is not installed"},
        "measurements": [asdict(one) for one in measurements],
        "ratios": [asdict(one) for one in ratios(measurements)],
        "breakdown": {"random": {"kernels": "amx", "threads": 2, "steps": steps}},
        "loading": [
            {
                "model": "random",
                "runner": "int8",
                "ready_s": 0.25,
                "anonymous_bytes": 2**28,
                "mapped_bytes": 2**30,
                "peak_bytes": 2**30,
            }
        ],
        "served": [
            {
                "model": "random",
                "streams": 4,
                "server": [figures | {"decode_tokens_per_s": 45.0, "ttft_s": 0.06}],
                "engine": [figures],
            }
        ],
    }


def test_the_page_is_that_of_the_result_files() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run: python benchmarks/engine_page.py"
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


def test_what_stands_around_the_results_stays(tmp_path: Path) -> None:
    page = f"before\n{BEGIN}\nold\n{END}after\n"
    found = render(page, tmp_path)
    assert found == f"before\n{BEGIN}\n{NOTHING}\n{END}after\n"
    assert render(found, tmp_path) == found


def test_every_link_of_the_results_leads_to_a_file() -> None:
    for part in results_text(RESULTS).split("](")[1:]:
        assert (PAGE.parent / part.split(")")[0]).is_file()


@pytest.mark.parametrize(
    "line",
    [
        "| decode, 1 sequence | 1.10 (1.02 to 1.18) |",  # int8 / llama.cpp
        "| decode, 1 sequence | 0.66 (0.61 to 0.71) | 0.60 (0.60 to 0.60) |",  # shares of the memory's speed
        "| prefill, 512 tokens | 900 | 300 | 4,000 |",
        "| random | 4 | 0.90 (0.90 to 0.90) | 45 | 60 (60 to 60) | 50 (50 to 50) |",
        "| random | int8 | 0.25 | 0.25 GiB | 1.00 GiB | 1.00 GiB |",
        "| `int8_experts` | 75% |",
        "| all else, Python between the operations included | 12% |",
        "The machine was idle before 17 of 18 turns.",
        "llama.cpp: built by clang version 19, with its AMX path.",
        "transformers was left out: transformers is not installed.",
    ],
)
def test_the_results_are_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "engine.json").write_text(json.dumps(report()))
    assert line in results_text(tmp_path)


def test_the_summary_is_int8_beside_the_others() -> None:
    text = summary(report())
    assert "| decode, 1 sequence | 1.10 (1.02 to 1.18) | – | – | 0.66 (0.61 to 0.71) | 66 |" in text
    assert "| prefill, 512 tokens | 3.00 (3.00 to 3.00) | – | – | – | 900 |" in text


def test_another_figure_is_another_page() -> None:
    changed = report()
    changed["measurements"][0]["tokens_per_s"] = [1.0, 1.0, 1.0]
    assert details(changed) != details(report())
