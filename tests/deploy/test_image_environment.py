"""What the image's RUN lines do to Python, done to a scratch environment that stands for NVIDIA's.

NVIDIA's packages that matter are here in the versions of 26.07-trtllm-python-py3, with hardly anything in them. What an
installer might be tempted by lies beside them in newer versions. This is not a run of the image.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile import ROOT, copy_context, instructions
from wheels import make_stand_in, pack_installed, with_dependencies

OPENAI_NAMES = "openai/types/responses/response_content_part_added_event.py"
TENSORRT_LLM = {
    "tensorrt_llm/__init__.py": "raise ImportError('libcuda.so.1: cannot open shared object file')\n",
    "tensorrt_llm/serve/responses_utils.py": (
        "from openai.types.responses.response_content_part_added_event import \\\n    PartReasoningText\n"
    ),
}
IN_IMAGE = {
    "jinja2": "3.1.4",  # older than ours, and stays
    "openai": "1.107.3",
    "safetensors": "0.6.2",
    "tensorrt-llm": "1.2.1",
    "tokenizers": "0.22.1",
    "torch": "2.10.0a0+b4e4ee81d3.nv25.12",
    "transformers": "4.57.1",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = [line.partition("==")[0] for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gateway"]]
MISSING = [name for name in OURS if name not in (*IN_IMAGE, "numpy")]
NEWER = {"torch": "2.13.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "jinja2": "3.1.6", "openai": "3.52.0"}


def openai(version: str, name: str) -> dict[str, str]:
    folders = ("openai", "openai/types", "openai/types/responses")
    return {f"{folder}/__init__.py": "" for folder in folders} | {OPENAI_NAMES: f"class {name}: ...\n"}


class Scratch:
    """A virtual environment in which the only index is a folder of wheels, and a copy of the image's files."""

    def __init__(self, folder: Path) -> None:
        self.wheels, self.venv, self.project = folder / "wheels", folder / "venv", folder / "project"
        self.wheels.mkdir()
        self.project.mkdir()
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        self.environment = {
            "PATH": f"{self.venv}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_NO_COMPILE": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
        }

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def versions(self) -> dict[str, str]:
        listed = self.run("python3 -m pip list --format=json").stdout
        return {package["name"].lower().replace("_", "-"): package["version"] for package in json.loads(listed)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    made = Scratch(tmp_path_factory.mktemp("image"))
    for name in with_dependencies([*MISSING, "hatchling", "editables"]):  # these two build our package
        pack_installed(name, made.wheels)
    there = tmp_path_factory.mktemp("there")
    for name, version in IN_IMAGE.items():
        modules = {"openai": openai(version, "Other"), "tensorrt-llm": TENSORRT_LLM}.get(name)
        make_stand_in(name, version, there, modules)
    for name, version in NEWER.items():
        make_stand_in(name, version, made.wheels, openai(version, "Another") if name == "openai" else None)
    make_stand_in("openai", "1.109.1", made.wheels, openai("1.109.1", "PartReasoningText"))
    installed = made.run(f"python3 -m pip install --no-deps {there}/*.whl numpy")
    assert installed.returncode == 0, installed.stderr
    copy_context(made.project)
    return made


def setup_lines() -> list[str]:
    """Those RUN lines of the image that touch Python."""
    lines = [text for keyword, text in instructions(ROOT / "deploy" / "Dockerfile") if keyword == "RUN"]
    return [line for line in lines if "setup_environment" in line or "python" in line or "pip" in line]


@pytest.fixture(scope="module")
def set_up(scratch: Scratch) -> tuple[dict[str, str], dict[str, str]]:
    """Versions before and after the image's RUN lines."""
    before = scratch.versions()
    (line,) = setup_lines()
    done = scratch.run(line)
    assert done.returncode == 0, done.stderr
    assert "openai lacks" in done.stderr  # said before it was repaired
    return before, scratch.versions()


def test_no_version_changes_but_openai(set_up: tuple[dict[str, str], dict[str, str]]) -> None:
    before, after = set_up
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    assert changed == {"openai": ("1.107.3", "1.109.1")}


def test_what_was_missing_is_there_and_our_package_too(set_up: tuple[dict[str, str], dict[str, str]]) -> None:
    before, after = set_up
    assert set(after) - set(before) >= {"mixtral-triton", "grpcio", *(name.partition("[")[0] for name in MISSING)}
    assert "nvidia-pytriton" not in after  # the image has a Triton


def test_our_package_runs_there(scratch: Scratch, set_up: tuple[dict[str, str], dict[str, str]]) -> None:
    assert "stream" in scratch.run("mixtral --help").stdout
    found = scratch.run("python3 -c 'import mixtral_client, mixtral_runtime; print(mixtral_client.__file__)'")
    assert found.stdout.startswith(str(scratch.project)), found.stderr


def test_nothing_needs_a_newer_click_than_the_image_may_have() -> None:
    """Clicks before 8.4 have no generic classes: with one of those no command could be imported."""
    sources = [path for folder in ("build", "client", "runtime", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert sources
    assert [path for path in sources if re.search(r"^class .*\bclick\.\w+\[", path.read_text(), re.MULTILINE)] == []


def test_make_uses_that_environment_and_sets_nothing_up_again(
    scratch: Scratch, set_up: tuple[dict[str, str], dict[str, str]]
) -> None:
    (stamp,) = [text for keyword, text in instructions(ROOT / "deploy" / "Dockerfile") if "touch .ready" in text]
    assert stamp.endswith("&& touch .ready")
    scratch.run("touch .ready && mkdir -p models/m && touch models/m/x.safetensors")
    variables = "IN_IMAGE=/opt/tritonserver MIXTRAL_READY=$PWD/.ready MODEL=models/m RUNTIME=tensorrt-llm GPU=a100"
    lines = scratch.run(f"make --dry-run engine serve {variables}").stdout.splitlines()
    assert lines == [
        'rm -rf "checkpoints/m-int8"',
        'mixtral-build quantize "models/m" "checkpoints/m-int8" --precision int8 --tp-size 1 --layout sm80',
        'mixtral-build engine "checkpoints/m-int8" "engines/default" --runtime tensorrt-llm --gpu a100 '
        "--preset latency --replace",
        'exec python3 scripts/serve.py --engine "engines/default" --gateway-port 9000 ',
    ]


def test_a_user_who_may_not_write_there_is_told_so(
    scratch: Scratch, set_up: tuple[dict[str, str], dict[str, str]]
) -> None:
    (packages,) = scratch.venv.glob("lib/python3*/site-packages")
    packages.chmod(0o555)
    try:
        # Root may write anywhere, unless this capability is taken away.
        drop = "setpriv --bounding-set=-dac_override --inh-caps=-dac_override " if os.geteuid() == 0 else ""
        done = scratch.run(f"{drop}scripts/setup_environment.sh ''")
    finally:
        packages.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {packages} is not writable; run this as root, or use the image")
