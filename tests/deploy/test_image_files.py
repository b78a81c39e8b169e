"""Dockerfiles pass hadolint, compose.yaml fulfils the Compose specification, and both say what is promised of them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dockerfile import ROOT, copy_context, instructions
from ruamel.yaml import YAML

from mixtral_serving.serve_config import ServeConfig
from mixtral_serving.server.command import EXIT_TIMEOUT_S

DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cpu"]
TOOLS = Path(sys.executable).parent


def resolved(value: Any) -> Any:
    """With each ${NAME:-default} replaced by its default."""
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item) for item in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Of compose.yaml, with nothing set in the environment."""
    found: dict[str, Any] = resolved(YAML(typ="safe").load(DEPLOY / "compose.yaml"))["services"]
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = run(TOOLS / "hadolint", "--failure-threshold", "style", path)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && apt-get install make\n")
    assert run(TOOLS / "hadolint", bad).returncode == 1


def test_compose_file_fulfils_the_specification() -> None:
    done = run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout


def test_the_schema_would_refuse_a_wrong_key(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("shm_size", "shmsize"))
    assert run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong).returncode == 1


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_serve_all_their_interfaces_as_an_ordinary_user_and_say_whether_they_are_well(path: Path) -> None:
    found = instructions(path)
    last = dict(found)  # of a keyword that occurs twice, the last one counts
    assert '"scripts/serve.py"' in last["CMD"]
    assert '"--host", "0.0.0.0"' in last["CMD"]
    assert last["USER"] == "1000:1000"
    assert last["HEALTHCHECK"].endswith('CMD ["python3", "/opt/mixtral-triton/deploy/healthcheck.py"]')
    assert '"--gateway-port", "9000", "--gateway-host", "0.0.0.0"' in last["CMD"]
    assert last["EXPOSE"] == "8000 8001 8002 8003 9000"
    assert last["STOPSIGNAL"] == "SIGTERM"


def test_the_gpu_image_is_nvidias_pinned_one() -> None:
    assert dict(instructions(DEPLOY / "Dockerfile")[:1])["ARG"] == (
        "BASE_IMAGE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    )


def test_what_serving_needs_goes_into_an_image_and_nothing_else(tmp_path: Path) -> None:
    copy_context(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "LICENSE",
        "Makefile",
        "README.md",
        "build",
        "client",
        "deploy",
        "model_repository",
        "models",
        "pyproject.toml",
        "runtime",
        "scripts",
    ]
    assert sorted(path.name for path in (tmp_path / "deploy").iterdir()) == ["healthcheck.py", "throughput.toml"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny-mixtral"]


def test_compose_publishes_to_this_machine_alone(services: dict[str, Any]) -> None:
    for name in ("mixtral", "mixtral-cpu"):
        assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002, 8003, 9000)]
    assert "ports" not in services["build"]


def test_compose_takes_gpu_0_and_what_triton_and_nccl_need(services: dict[str, Any]) -> None:
    for name in ("mixtral", "build"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
        assert services[name]["shm_size"] == "1gb"
        assert services[name]["ulimits"] == {"memlock": -1, "stack": 64 * 2**20}
    assert "deploy" not in services["mixtral-cpu"]


def test_compose_gives_rights_to_nobody(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "env_file" not in service
        assert set(service.get("environment", [])) <= {"MIXTRAL_GATEWAY_API_KEYS"}  # by name: its value is not there
    assert services["mixtral"]["volumes"] == ["../engines:/engines:ro"]  # serving writes nothing


def test_compose_waits_until_running_requests_are_done(services: dict[str, Any]) -> None:
    for name in ("mixtral", "mixtral-cpu"):
        assert services[name]["stop_grace_period"] == "1m"
        assert services[name]["restart"] == "unless-stopped"
    assert 2 * EXIT_TIMEOUT_S + ServeConfig().engine.drain_s < 60


@pytest.mark.parametrize(("name", "path"), [("mixtral", DOCKERFILES[0]), ("mixtral-cpu", DOCKERFILES[1])])
def test_compose_checks_health_as_the_image_does(services: dict[str, Any], name: str, path: Path) -> None:
    check = services[name]["healthcheck"]
    flags = dict(re.findall(r"--([\w-]+)=(\w+)", dict(instructions(path))["HEALTHCHECK"]))
    assert flags == {
        "interval": check["interval"],
        "timeout": check["timeout"],
        "start-period": check["start_period"],
        "retries": str(check["retries"]),
    }
    assert check["test"] == ["CMD", "python3", "/opt/mixtral-triton/deploy/healthcheck.py"]


def test_compose_serves_as_the_image_does(services: dict[str, Any]) -> None:
    command = services["mixtral"]["command"]
    assert str(command).replace("'", '"') == dict(instructions(DOCKERFILES[0]))["CMD"]
