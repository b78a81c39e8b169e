"""Every command of the README is run, as it stands there but for ports and the path of the real model."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from system_server import Server, free_address

from mixtral_serving.server.installation import unsupported_platform

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
REAL_MODEL = "$HOME/models/Mixtral-8x7B-Instruct-v0.1"
# Not run here, each for its reason.
NOT_RUN = {
    "make test": "this test is a part of it",
    f"hf download mistralai/Mixtral-8x7B-Instruct-v0.1 --local-dir {REAL_MODEL}": "93 GB from a hub",
    "make serve ENGINE=engines/mixtral": "`make serve` is run with the other engine",
    "make image-cpu": "no container engine runs in tests; tests/deploy does what can be done without",
    "docker run --rm --init -p 127.0.0.1:8001:8001 -p 127.0.0.1:9000:9000 mixtral-triton:cpu": "the same",
    "make image": "the same",
    f"make container-engine MODEL={REAL_MODEL} ENGINE=engines/a100 PRECISION=int8 GPU=a100": "the same",
    "make container-serve ENGINE=engines/a100": "the same",
}

pytestmark = pytest.mark.skipif(unsupported_platform() is not None, reason=str(unsupported_platform()))


def commands() -> list[str]:
    """The lines of all `sh` blocks; a line ending in a backslash goes on."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """make's own variables would reach the make that a command starts."""
    folder = tmp_path_factory.mktemp("readme")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    paths = {"CHECKPOINT": str(folder / "checkpoint"), "ENGINE": str(folder / "engine"), "FOLDER": str(folder)}
    return kept | paths | {"GATEWAY_PORT": str(free_address().http_port)}


def run(command: str, environment: dict[str, str], timeout_s: float = 170) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def served(environment: dict[str, str]) -> Iterator[Server]:
    """`make engine && make serve`, on ports of its own."""
    assert "make engine && make serve" in commands()
    run("make engine -e", environment)
    address = free_address()
    flags = f"--http-port {address.http_port} --grpc-port {address.grpc_port} --metrics-port {address.metrics_port}"
    flags += f" --health-port {address.health_port}"
    process = subprocess.Popen(
        ["make", "-e", "serve"],
        cwd=ROOT,
        env=environment | {"SERVE_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: pytorch engine")
    yield Server(address)
    # As Ctrl-C in a terminal does: the whole foreground group gets the signal.
    subprocess.run(["pkill", "-INT", "-P", str(process.pid)], check=False)
    process.send_signal(signal.SIGINT)
    process.wait(60)


def test_the_demo_streams_answers_and_measures(environment: dict[str, str]) -> None:
    output = run("make demo", environment)
    assert "Zorin" in output  # told in the question, given back in the answer
    divergence = re.search(r"^mean KL\(A \|\| B\): (\S+) nats", output, re.MULTILINE)
    assert divergence is not None
    assert 0 < float(divergence[1]) < 1e-3


def test_the_python_example_runs(served: Server, environment: dict[str, str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = example.replace("localhost:8001", served.grpc_url)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == served.ask(text_input="Once upon a time", max_tokens=100).text


def test_every_command_is_run_or_has_a_reason(served: Server, environment: dict[str, str]) -> None:
    url = {"MIXTRAL_URL": served.grpc_url}
    ran = {"make demo", "make engine && make serve"}
    for command in commands():
        if command in ran or command in NOT_RUN:
            continue
        actual = command.replace("localhost:8000", served.http_url.removeprefix("http://"))
        actual = actual.replace("localhost:9000", f"localhost:{environment['GATEWAY_PORT']}")
        actual = actual.replace(REAL_MODEL, str(ROOT / "models" / "tiny-mixtral"))
        actual = actual.replace("engines/mixtral", f"{environment['FOLDER']}/mixtral")
        variables = {name: value for name, value in environment.items() if name not in ("CHECKPOINT", "ENGINE")}
        assert run(actual, variables | url).strip(), command
    assert set(NOT_RUN) <= set(commands()), "a reason for a command that the README no longer has"
