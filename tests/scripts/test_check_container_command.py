"""`scripts/check_container.py` as a program, on a machine that has nothing of what it looks for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from check_container import run
from container_check.checks import CHECKS
from container_check.machine import IMAGE, look_around

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "check_container.py"
ROOT = PROGRAM.parents[1]
outside = pytest.mark.skipif(
    IMAGE.is_dir() or bool(look_around().gpus), reason="this machine has what the others have not"
)


@outside
def test_all_that_needs_the_image_is_not_available_and_nothing_of_it_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--json", tmp_path / "report.json"],
        cwd=tmp_path,
        env={**os.environ, "MIXTRAL_TRTLLM_BINDINGS": "trtllm_double"},  # which is not taken for the library
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert list(status) == [check.name for check in CHECKS]
    assert {name for name, found in status.items() if found == "pass"} == {"golden-ours"}
    assert {found for name, found in status.items() if name != "golden-ours"} == {"not_available"}
    assert done.returncode == report["exit_code"] == 3
    for check in report["checks"]:
        assert len(check["details"]) == 1  # one sentence
    assert done.stdout.startswith("mixtral-triton container check\n")
    assert "1 passed, 14 not available here; nothing is known of what is not available" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) < 40
    assert done.stderr.splitlines()[0] == "image: the image's versions are those this is written for?"


def test_a_check_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--only", "golden-ours", "--keep", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("1 passed")


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [check.name for check in CHECKS]


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--only", "nonsense"]) == 2
    assert "there is no check nonsense, there are image, " in capsys.readouterr().err
    assert run(["--model", str(tmp_path / "absent")]) == 2


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["--only", "golden-ours", "--json", str(tmp_path / "file" / "report.json")]) == 2
    said = capsys.readouterr()
    assert "report.json cannot be written: " in said.err
    assert said.out == ""


def test_ctrl_c_ends_it_and_what_it_started(tmp_path: Path) -> None:
    """A trtllm-build that hangs while its help is asked for."""
    program = tmp_path / "trtllm-build"
    program.write_text(f"#!{sys.executable}\nimport time\nopen('begun', 'w').close()\ntime.sleep(100.25)\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    keep = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, PROGRAM, "--only", "flags", "--keep", keep],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (keep / "begun").is_file():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith("interrupted")
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(program) not in alive


def test_make_runs_it(tmp_path: Path) -> None:
    said = subprocess.run(
        ["make", "-n", "check-container"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert 'scripts/check_container.py --json "engines/container-check.json"' in said
