"""Without a usable Python the setup says which command gets one, and touches nothing."""

import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_environment.sh"


def test_the_command_that_gets_a_python_is_named(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "sed", "uname", "apt-get", "apt-cache"):
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    shim = tools / "python3.11"  # a version manager's, for a version that is not installed
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        [tools / "bash", SCRIPT, venv], env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Python 3.11 or 3.12 with venv is needed; get it with: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not venv.exists()
