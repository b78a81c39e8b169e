"""docs/performance.md says what was measured, to the digit, and the program that writes it would write it again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from peers.interface import Figures
from peers.report import ratios
from performance_page import PAGE, PRESETS_COMMAND, RESULTS, SECTIONS, main, render
from streaming import ENSEMBLES, TTFT_PROMPTS, summary
from streaming_measure import Point
from tables import spread

from mixtral_client.bench.presets import PRESETS

MACHINE = {"processor": "Some Processor", "cores": 2, "python": "3.11.7", "versions": {"numpy": "1.26.4"}}


def streaming_report(highest: list[tuple[float, ...]]) -> dict[str, Any]:
    """As `streaming.py` writes it. highest: paced load that our path, the plain one and perhaps NVIDIA's carried, for
    each round."""
    names = (*ENSEMBLES, "nvidia")[: len(highest[0])]
    rounds = [
        {
            "paced": [point(path, 4, 200.0) for path in ("engine", *names)],
            "unpaced": [
                point("engine", 4, None, delivered=9000.0),
                point("ensemble", 4, None, delivered=6000.0),
                point("plain ensemble", 4, None, delivered=1500.0),
            ],
            "highest_paced_tokens_per_s": dict(zip(names, one, strict=True)),
            "first_token_ms": {path: {str(n): [1.0, 2.0, 3.0] for n in TTFT_PROMPTS} for path in names},
        }
        for one in highest
    ]
    settings = {"rounds": len(rounds), "step_s": 0.02, "unpaced_tokens": 2000}
    return {"hardware": MACHINE, "settings": settings, "rounds": rounds, "summary": summary(rounds)}


def point(path: str, streams: int, offered: float | None, delivered: float = 150.0) -> dict[str, object]:
    per_response = 1.0 if offered else 4.0
    cpu_us = {"server": 30.0, "postprocessing": 20.0, "client": 40.0}
    return Point(path, streams, 100, offered, delivered, 9.0, per_response, 2.0, 5.0, 0.1, cpu_us).to_json()


def peers_report() -> dict[str, Any]:
    measured = {
        ("ours", 1): [Figures(0.10, 300.0, 900.0), Figures(0.12, 330.0, 960.0)],
        ("theirs", 1): [Figures(0.05, 150.0, 450.0), Figures(0.06, 300.0, 480.0)],
    }
    found = [
        {
            "peer": r.peer,
            "concurrency": r.concurrency,
            "metric": r.metric,
            "median": r.median,
            "min": r.min,
            "max": r.max,
        }
        for r in ratios(measured, "ours")
    ]
    settings = {"input_tokens": 128, "output_tokens": 64, "rounds": 2, "threads": 2}
    return {"machine": MACHINE, "settings": settings, "ratios": found, "skipped": {"vllm": "there is no GPU"}}


def rounds_of(report: dict[str, Any]) -> int:
    return int(report["settings"]["rounds"])


def page_of(tmp_path: Path, name: str, report: dict[str, Any]) -> str:
    (tmp_path / "here").mkdir(exist_ok=True)
    (tmp_path / "here" / name).write_text(json.dumps(report))
    return render(tmp_path)


def test_the_page_is_that_of_the_result_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python benchmarks/performance_page.py"
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


def test_every_link_of_the_page_leads_to_a_file() -> None:
    links = [part.split(")")[0] for part in PAGE.read_text(encoding="utf-8").split("](")[1:]]
    assert links
    for link in links:
        assert (PAGE.parent / link.split("#")[0]).is_file(), link


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/presets/*.json")), ids=lambda path: path.stem)
def test_a_preset_measured_otherwise_changes_the_page(path: Path, tmp_path: Path) -> None:
    presets = tmp_path / "here" / "presets"
    presets.mkdir(parents=True)
    shutil.copy(path, presets)
    before = render(tmp_path)
    report = json.loads(path.read_text())
    report["points"][0]["summary"]["output_tokens_per_s"] += 1
    (presets / path.name).write_text(json.dumps(report))
    assert render(tmp_path) != before
    assert "Pictures: none." in before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "decode.json",
            lambda report: report["measurements"][0].update(tokens_per_s=[7.0] * rounds_of(report)),
        ),
        ("build.json", lambda report: report["measurements"][0].update(speed_ratio=7.77)),
        ("load-generator.json", lambda report: report["measurements"][0].update(cpu_us=[1.0])),
    ],
)
def test_a_result_that_changes_changes_the_page(
    name: str, change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    for path in RESULTS.glob(f"*/{name}"):
        report = json.loads(path.read_text())
        before = page_of(tmp_path, name, report)
        change(report)
        assert page_of(tmp_path, name, report) != before


def test_the_streaming_path_is_shown_as_ratios_of_the_same_round_with_their_range(tmp_path: Path) -> None:
    page = page_of(tmp_path, "streaming.json", streaming_report([(4000.0, 1000.0), (9000.0, 3000.0), (8000.0, 1600.0)]))
    assert "| highest paced load, tokens/s | **4.00 (3.00 to 5.00)** | 8,000 (4,000 to 9,000) |" in page
    assert "| 4 | ours | 0.75 (0.75 to 0.75) | 150 " in page  # of 200 that were offered
    assert "| 4 | ours | 4.00 (4.00 to 4.00) | 6,000 " in page  # of the plain ensemble's 1,500
    assert "Some Processor, 2 cores; Python 3.11.7, numpy 1.26.4." in page


def test_nvidia_s_models_stand_beside_where_they_were_measured(tmp_path: Path) -> None:
    page = page_of(tmp_path, "streaming.json", streaming_report([(4000.0, 1000.0, 500.0)]))
    assert "| figure | ours / plain | ours / NVIDIA's | ours | plain ensemble | NVIDIA's models |" in page
    assert "| highest paced load, tokens/s | **4.00** | **8.00** | 4,000 | 1,000 | 500 |" in page
    assert "| 4 | NVIDIA's models | 0.75 | 150 " in page
    assert "with the plain ensemble's engine model" in page


def test_a_plain_path_that_carries_nothing_leaves_no_ratio(tmp_path: Path) -> None:
    page = page_of(tmp_path, "streaming.json", streaming_report([(4000.0, 0.0)]))
    assert "| highest paced load, tokens/s | **–** | 4,000 | 0 |" in page


def test_peers_are_shown_as_ratios_and_who_was_left_out(tmp_path: Path) -> None:
    page = page_of(tmp_path, "peers.json", peers_report())
    assert "| 1 | theirs | 2.00 (2.00 to 2.00) | 1.55 (1.10 to 2.00) | 2.00 (2.00 to 2.00) |" in page
    assert "vllm was left out: there is no GPU" in page


def test_what_is_missing_names_the_command_that_measures_it(tmp_path: Path) -> None:
    page = page_of(tmp_path, "peers.json", peers_report())
    (missing,) = [line for line in page.splitlines() if line.startswith("Not measured here yet: ")]
    for section in SECTIONS:
        assert (f"`{section.command}`" in missing) == (section.file != "peers.json")
        assert (f"### {section.title}\n" in page) == (section.file == "peers.json")
    assert f"`{PRESETS_COMMAND}`" in missing
    (tmp_path / "here" / "presets").mkdir()
    assert all(f"#### `{name}`\n\nNot measured here yet." in render(tmp_path) for name in PRESETS)


def test_each_kind_of_machine_has_a_chapter(tmp_path: Path) -> None:
    page_of(tmp_path, "peers.json", peers_report())
    report = peers_report()
    report["machine"] = MACHINE | {"processor": "NVIDIA H100", "gpu": "NVIDIA H100"}
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "peers.json").write_text(json.dumps(report))
    both = render(tmp_path)
    assert "## Some Processor, 2 cores\n" in both
    assert "## NVIDIA H100, 2 cores\n" in both


def test_cards_have_a_section_each_and_blanks_stand_where_none_was_measured(tmp_path: Path) -> None:
    page = page_of(tmp_path, "peers.json", peers_report())
    assert "Not measured yet: `make gpu-check`." in page
    assert "| int8 decode at batch 1: share of the copy bandwidth | at least 0.8 | – | – |" in page
    (tmp_path / "card").mkdir()
    report = {
        "machine": MACHINE | {"processor": "NVIDIA H100", "gpu": "NVIDIA H100", "kernels": "triton"},
        "complete": True,
        "parts": [],
        "ceilings": {"copy_bytes_per_s": 2.9e12},
        "peers": [],
    }
    (tmp_path / "card" / "gpu.json").write_text(json.dumps(report))
    page = render(tmp_path)
    assert "Not measured yet: `make gpu-check`." not in page
    assert "### NVIDIA H100\n" in page
    assert "a copy 2.90 TB/s read and written" in page
    assert "## NVIDIA H100, 2 cores" not in page  # it has no result of the other programs


def test_a_figure_measured_once_has_no_range() -> None:
    assert spread([1234.567], 1) == "1,234.6"
    assert spread([3.0, 1.0, 2.0], 0) == "2 (1 to 3)"
    assert spread([]) == "–"
