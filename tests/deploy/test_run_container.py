"""The `docker run` line for building and serving inside the image, made by a pure function and printed on request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_container import BIND_ALL, Container, UsageError, check_model, chosen_gpus, run_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_container.py"
SERVED = Container(
    image="mixtral-triton:latest",
    command=("python3", "scripts/serve.py", "--engine", "engines/x", "--host", "0.0.0.0"),
    volumes=((Path("/data/engines/x"), "/engines/x", True),),
    user="1001:1002",
    publish=("127.0.0.1", (8000, 8001, 8002, 8003, 9000)),
    pass_on=("A_SECRET",),
)


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | environment
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=30)


def test_the_whole_line() -> None:
    assert run_command(SERVED, "docker") == [
        *("docker", "run", "--rm", "--init"),
        *("--gpus", "device=0"),
        *("--shm-size", "1g", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864"),
        *("--user", "1001:1002", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--stop-timeout", "60"),
        *("--env", "A_SECRET"),  # its name alone
        *("--volume", "/data/engines/x:/engines/x:ro"),
        *("--publish", "127.0.0.1:8000:8000"),
        *("--publish", "127.0.0.1:8001:8001"),
        *("--publish", "127.0.0.1:8002:8002"),
        *("--publish", "127.0.0.1:8003:8003"),
        *("--publish", "127.0.0.1:9000:9000"),
        "mixtral-triton:latest",
        *("python3", "scripts/serve.py", "--engine", "engines/x", "--host", "0.0.0.0"),
    ]


def test_several_gpus_are_quoted_for_docker() -> None:
    line = run_command(Container("i", (), (), gpus=("0", "1")), "docker")
    assert line[line.index("--gpus") + 1] == '"device=0,1"'


def test_podman_has_its_own_words_for_gpus_and_owners() -> None:
    line = run_command(Container("i", (), (), gpus=("0", "1")), "/usr/bin/podman")
    assert "--gpus" not in line
    assert [line[i + 1] for i, flag in enumerate(line) if flag == "--device"] == [
        "nvidia.com/gpu=0",
        "nvidia.com/gpu=1",
    ]
    assert line[line.index("--userns") + 1] == "keep-id"


def test_without_a_gpu_none_is_asked_for() -> None:
    assert "--gpus" not in run_command(Container("i", (), (), gpus=()), "docker")


@pytest.mark.parametrize(
    ("environment", "count", "gpus"),
    [
        ({}, 1, ("0",)),
        ({}, 2, ("0", "1")),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1, ("3",)),
        ({"CUDA_VISIBLE_DEVICES": "2, 5,6"}, 2, ("2", "5")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a1b"}, 1, ("GPU-8a1b",)),
    ],
)
def test_gpu_0_unless_others_are_named(environment: dict[str, str], count: int, gpus: tuple[str, ...]) -> None:
    assert chosen_gpus(environment, count) == gpus


@pytest.mark.parametrize("named", ["", "1"])
def test_too_few_gpus_are_refused(named: str) -> None:
    with pytest.raises(UsageError, match=f"CUDA_VISIBLE_DEVICES is '{named}', 2 GPUs are needed"):
        chosen_gpus({"CUDA_VISIBLE_DEVICES": named}, 2)


def test_building_from_outside(demo_model: Path, tmp_path: Path) -> None:
    done = call(
        *("--dry-run", "--checkpoints", tmp_path / "c", "engine", demo_model, tmp_path / "e" / "tiny"),
        *("PRECISION=int8", "GPU=a100"),
    )
    assert done.stderr == ""
    assert done.stdout.endswith(
        f"--volume {demo_model}:/models/tiny-mixtral:ro --volume {tmp_path}/c:/checkpoints "
        f"--volume {tmp_path}/e:/engines mixtral-triton:latest "
        "make engine MODEL=/models/tiny-mixtral ENGINE=engines/tiny RUNTIME=tensorrt-llm PRECISION=int8 GPU=a100\n"
    )
    assert "--publish" not in done.stdout
    assert not list(tmp_path.iterdir())  # printed only


def test_serving_from_outside(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    arguments = (
        "--dry-run",
        "--publish",
        "0.0.0.0",
        "--ports",
        "8100,8101,8102,8103,9100",
        "serve",
        tmp_path,
        "--verbose",
    )
    line = call(*arguments).stdout
    assert " ".join(f"--publish 0.0.0.0:810{n}:800{n}" for n in range(4)) + " --publish 0.0.0.0:9100:9000 " in line
    assert line.endswith(f"scripts/serve.py --engine engines/{tmp_path.name} {' '.join(BIND_ALL)} --verbose\n")


def test_settings_bring_their_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    settings = tmp_path / "serve.toml"
    settings.write_text("")
    line = call("--dry-run", "--config", settings, "serve", tmp_path).stdout
    assert f"--volume {tmp_path}:/config:ro " in line
    assert line.endswith("--gateway-host 0.0.0.0 --config /config/serve.toml\n")
    missing = call("--dry-run", "--config", tmp_path / "other.toml", "serve", tmp_path)
    assert missing.stderr == f"error: {tmp_path}/other.toml is not a file\n"


@pytest.mark.parametrize("target", ["container-engine", "container-serve"])
def test_make_goes_the_same_way(target: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    variables = [f"ENGINE={tmp_path}", "CONTAINER_FLAGS=--dry-run", "TP=2", "PRESET=throughput", "MAKEFLAGS="]
    done = subprocess.run(
        ["make", target, *variables], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("docker run --rm --init --gpus '\"device=0,1\"' ")
    assert ("PRESET=throughput TP=2" in done.stdout) == (target == "container-engine")


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = call("--dry-run", "serve", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path} is not an engine directory, it has no manifest.json\n"
    done = call("--dry-run", "engine", tmp_path, tmp_path / "e")
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path} is not a model's directory, it has no config.json\n",
    )


def test_links_out_of_the_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("{}")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").symlink_to(tmp_path / "blob")
    with pytest.raises(UsageError, match=r"config.json is a link to outside .*; copy the model"):
        check_model(model)


@pytest.mark.parametrize("arguments", [("--ports", "1,2", "serve", "x"), ("--ports", "1,1,2", "serve", "x"), ("burn",)])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).returncode == 2


def tools_only(folder: Path, *names: str) -> Path:
    """A folder for PATH with these programs and no others."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def build_image(tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(tools / "bash"), str(ROOT / "scripts" / "build_image.sh"), *arguments]
    return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=30)


def test_without_docker_or_podman_there_is_one_sentence(tmp_path: Path) -> None:
    """For running a container and for building an image."""
    (tmp_path / "manifest.json").write_text("{}")
    assert call("serve", tmp_path, PATH=str(tmp_path)).stderr == "error: neither docker nor podman is installed\n"
    done = build_image(tools_only(tmp_path / "bin", "bash", "dirname"), "deploy/Dockerfile", "tag")
    assert (done.returncode, done.stderr) == (1, "error: neither docker nor podman is installed\n")


@pytest.mark.parametrize(("program", "flags"), [("docker", []), ("podman", ["--format", "docker"])])
def test_an_image_is_built_with_what_is_installed(tmp_path: Path, program: str, flags: list[str]) -> None:
    tools = tools_only(tmp_path / "bin", "bash", "dirname", "git")
    stand_in = tools / program
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    said = build_image(tools, "deploy/Dockerfile.cpu", "mixtral-triton:cpu", "--pull").stdout.splitlines()
    assert said[:6] == ["build", "--file", "deploy/Dockerfile.cpu", "--tag", "mixtral-triton:cpu", "--build-arg"]
    assert said[6].startswith("REVISION=")
    assert said[7:] == [*flags, "--pull", "."]
