"""An openai client that is a year old gets the same from the gateway as the one this project pins."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_process import gateway_process
from system_server import Server, idle

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "support" / "openai_conversation.py"
IN_IMAGE = ROOT / ".tools" / "openai-1.109.1" / "lib"
OLD = ROOT / ".tools" / "openai-2.8.0" / "bin" / "python"
KEY = "a-key-of-these-tests"


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    with gateway_process(server.grpc_url, environment={"MIXTRAL_GATEWAY_API_KEYS": f"tester:{KEY}"}) as gateway:
        yield f"{gateway.url}/v1"


def conversation(python: Path, url: str) -> dict[str, Any]:
    done = subprocess.run([python, PROGRAM, url, KEY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_both_clients_get_the_same(server: Server, url: str) -> None:
    version = subprocess.run(
        [OLD, "-c", "import openai; print(openai.__version__)"], capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() == "2.8.0"
    old, new = conversation(OLD, url), conversation(Path(sys.executable), url)
    assert old == new
    assert old["models"] == ["mixtral"]
    assert [answer[:2] for answer in old["refusals"]] == [
        ["BadRequestError", 400],
        ["NotFoundError", 404],
        ["BadRequestError", 400],
        ["AuthenticationError", 401],
    ]
    assert [answer[3] for answer in old["refusals"]] == ["temperature", "model", "no_such_field", None]
    assert old["streamed"] == old["chat"]["message"]["content"] != ""
    assert len(old["many"]) == 1
    server.wait_for_stats(idle)  # the stream that each of them left is over


def test_the_gateway_itself_runs_with_the_openai_package_of_nvidias_image(server: Server, url: str) -> None:
    """It takes the requests' types from there."""
    (packages,) = IN_IMAGE.glob("python3*/site-packages")
    environment = {"MIXTRAL_GATEWAY_API_KEYS": f"tester:{KEY}", "PYTHONPATH": str(packages)}
    with gateway_process(server.grpc_url, environment=environment) as gateway:
        loaded = {Path(file.path) for file in psutil.Process(gateway.process.pid).memory_maps()}
        assert any(packages in path.parents for path in loaded)  # pydantic's part that is compiled
        assert conversation(Path(sys.executable), f"{gateway.url}/v1") == conversation(Path(sys.executable), url)
