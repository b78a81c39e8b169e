"""What is wrong with an engine, a port or a setting is said in one line with the fix, before a server starts."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from system_server import Server, free_address

from mixtral_serving.server.installation import unsupported_platform

ROOT = Path(__file__).resolve().parents[2]
SERVE = [sys.executable, str(ROOT / "scripts" / "serve.py")]


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def failure(*arguments: str | Path) -> str:
    """The one line on stderr of a start that must fail."""
    done = serve(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def broken(engine_dir: Path, tmp_path: Path) -> Path:
    """A copy of the engine for a test to damage."""
    return Path(shutil.copytree(engine_dir, tmp_path / "engine"))


def test_missing_engine(tmp_path: Path) -> None:
    assert "error: " in (line := failure("--engine", tmp_path / "absent"))
    assert "absent" in line


def test_truncated_weights(broken: Path) -> None:
    weights = broken / "rank0.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    line = failure("--engine", broken)
    assert "rank0.safetensors" in line
    assert "bytes" in line


def test_missing_file(broken: Path) -> None:
    (broken / "tokenizer" / "tokenizer.json").unlink()
    assert "tokenizer.json" in failure("--engine", broken)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [("runtime", "onnx", "onnx"), ("format_version", 99, "99"), ("surprise", 1, "surprise")],
)
def test_wrong_manifest(broken: Path, key: str, value: object, complaint: str) -> None:
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    assert complaint in failure("--engine", broken)


def test_port_in_use(engine_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = failure("--engine", engine_dir, "--grpc-port", str(port))
    assert f"port {port} is in use" in line
    assert "--grpc-port" in line


def test_wrong_settings(engine_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[engine]\ndevise = 'cpu'\n")
    assert "unknown key engine.devise, known are device" in failure("--engine", engine_dir, "--config", config)


def test_wrong_usage() -> None:
    assert serve().returncode == 2
    assert serve("--engine", "x", "--grpc-port", "0").returncode == 2


@pytest.mark.skipif(unsupported_platform() is not None, reason=str(unsupported_platform()))
def test_a_signal_stops_the_server_and_leaves_nothing_behind(engine_dir: Path) -> None:
    address = free_address()
    ports = ["--http-port", address.http_port, "--grpc-port", address.grpc_port]
    ports += ["--metrics-port", address.metrics_port, "--health-port", address.health_port]
    process = subprocess.Popen(
        [*SERVE, "--engine", str(engine_dir), *map(str, ports)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"ready: pytorch engine {engine_dir}")
    answer = Server(address).ask(text_input="Once upon a time", max_tokens=5)
    assert answer.error is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not list(Path("/dev/shm").glob(f"mixtral-{process.pid}-*"))
    with pytest.raises(grpc.InferenceServerException):
        grpc.InferenceServerClient(f"127.0.0.1:{address.grpc_port}").is_server_live(client_timeout=2)
