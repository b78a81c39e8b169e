"""Builds or serves an engine inside the image, from outside: prints or runs one `docker run` (or `podman run`).

Python's own library alone (3.10 or later), so that a machine needs nothing but Docker or Podman.

Examples:
  python3 scripts/run_container.py --dry-run engine ~/models/Mixtral-8x7B-Instruct-v0.1 engines/mixtral PRECISION=int8
  python3 scripts/run_container.py serve engines/mixtral --verbose
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

IMAGE = "mixtral-triton:latest"
SHM_SIZE = "1g"  # stubs exchange tensors there, and NCCL between GPUs; a container has 64 MiB if nothing is said
STACK_BYTES = 64 * 2**20
STOP_TIMEOUT_S = 60  # longer than the server takes to finish what it has begun
INSIDE_PORTS = (8000, 8001, 8002, 8003, 9000)  # HTTP, gRPC, metrics, health, gateway
API_KEYS = "MIXTRAL_GATEWAY_API_KEYS"  # read by the gateway; given by name alone, so that no command line shows it
Ports = tuple[int, int, int, int, int]
# All interfaces are the container's own; what reaches it is decided by the ports that are published.
BIND_ALL = ("--host", "0.0.0.0", "--gateway-port", "9000", "--gateway-host", "0.0.0.0")


class UsageError(Exception):
    """What was asked for cannot be done; one sentence."""


@dataclass(frozen=True)
class Container:
    """gpus: ids or indices, none for none. volumes: host folder, folder inside, whether only for reading.
    publish: address on this machine and its ports, in the order of INSIDE_PORTS; None publishes nothing.
    user: "uid:gid" that files get. pass_on: variables of the environment that the container gets where they are set."""

    image: str
    command: tuple[str, ...]
    volumes: tuple[tuple[Path, str, bool], ...]
    gpus: tuple[str, ...] = ("0",)
    user: str = "1000:1000"
    shm_size: str = SHM_SIZE
    publish: tuple[str, Ports] | None = None
    pass_on: tuple[str, ...] = ()


def run_command(container: Container, program: str) -> list[str]:
    """The line to run. program: the path or name of docker or podman."""
    podman = Path(program).name == "podman"
    line = [program, "run", "--rm", "--init"]
    if podman:
        # CDI names, which `nvidia-ctk cdi generate` defines; and files keep their owner in a user namespace.
        line += [flag for gpu in container.gpus for flag in ("--device", f"nvidia.com/gpu={gpu}")]
        line += ["--security-opt", "label=disable", "--userns", "keep-id"]
    elif container.gpus:
        devices = f"device={','.join(container.gpus)}"
        # Docker reads the value as CSV, in which a comma must be quoted.
        line += ["--gpus", f'"{devices}"' if "," in devices else devices]
    line += ["--shm-size", container.shm_size, "--ulimit", "memlock=-1", "--ulimit", f"stack={STACK_BYTES}"]
    line += ["--user", container.user, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    line += ["--stop-timeout", str(STOP_TIMEOUT_S)]
    line += [part for name in container.pass_on for part in ("--env", name)]
    for host, inside, read_only in container.volumes:
        line += ["--volume", f"{host}:{inside}:ro" if read_only else f"{host}:{inside}"]
    if container.publish is not None:
        address, ports = container.publish
        for port, inside_port in zip(ports, INSIDE_PORTS, strict=True):
            line += ["--publish", f"{address}:{port}:{inside_port}"]
    return [*line, container.image, *container.command]


def chosen_gpus(environment: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Those of CUDA_VISIBLE_DEVICES, else the first `count`. Raises UsageError when there are fewer than `count`."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(str(index) for index in range(count))
    gpus = tuple(gpu.strip() for gpu in named.split(",") if gpu.strip())
    if len(gpus) < count:
        raise UsageError(f"CUDA_VISIBLE_DEVICES is {named!r}, {count} GPUs are needed")
    return gpus[:count]


def engine_container(
    image: str, model: Path, engine: Path, checkpoints: Path, gpus: tuple[str, ...], user: str, variables: list[str]
) -> Container:
    """`make engine` on a model, into an engine directory. variables: NAME=VALUE for make."""
    model, engine = model.resolve(), engine.absolute()
    check_model(model)
    for variable in variables:
        if "=" not in variable:
            raise UsageError(f"{variable} is not a variable for make, such as PRECISION=int8")
    inside = f"/models/{model.name}"
    command = ("make", "engine", f"MODEL={inside}", f"ENGINE=engines/{engine.name}", "RUNTIME=tensorrt-llm", *variables)
    volumes = (
        (model, inside, True),
        (checkpoints.absolute(), "/checkpoints", False),
        (engine.parent, "/engines", False),
    )
    return Container(image, command, volumes, gpus, user)


def serve_container(
    image: str,
    engine: Path,
    gpus: tuple[str, ...],
    user: str,
    publish: tuple[str, Ports],
    flags: list[str],
    config: Path | None = None,
) -> Container:
    """`scripts/serve.py` on an engine directory. flags: more of its options. config: the operator's settings; the files
    that they name stand in the same folder."""
    engine = engine.resolve()
    if not (engine / "manifest.json").is_file():
        raise UsageError(f"{engine} is not an engine directory, it has no manifest.json")
    command = ["python3", "scripts/serve.py", "--engine", f"engines/{engine.name}", *BIND_ALL]
    volumes = [(engine, f"/engines/{engine.name}", True)]
    if config is not None:
        config = config.absolute()
        if not config.is_file():
            raise UsageError(f"{config} is not a file")
        command += ["--config", f"/config/{config.name}"]
        volumes.append((config.parent, "/config", True))
    return Container(image, (*command, *flags), tuple(volumes), gpus, user, publish=publish, pass_on=(API_KEYS,))


def check_model(model: Path) -> None:
    """Raises UsageError for what a container would not see as it is here."""
    if not (model / "config.json").exists():
        raise UsageError(f"{model} is not a model's directory, it has no config.json")
    for path in model.iterdir():
        if path.is_symlink() and model not in path.resolve().parents:
            raise UsageError(f"{path} is a link to outside {model}, which a container does not see; copy the model")


def find_program() -> str:
    for name in ("docker", "podman"):
        if found := shutil.which(name):
            return found
    raise UsageError("neither docker nor podman is installed")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dry-run", action="store_true", help="print the command line, run nothing")
    result.add_argument("--program", help="docker or podman (default: what is installed)")
    result.add_argument("--image", default=IMAGE)
    result.add_argument("--gpus", type=int, default=1, metavar="N", help="how many; CUDA_VISIBLE_DEVICES says which")
    result.add_argument("--publish", default="127.0.0.1", metavar="ADDRESS", help="of this machine, for the ports")
    result.add_argument("--ports", default=INSIDE_PORTS, type=_ports, metavar="HTTP,GRPC,METRICS,HEALTH,GATEWAY")
    result.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR")
    result.add_argument("--config", type=Path, metavar="FILE", help="settings to serve with; its folder is mounted")
    commands = result.add_subparsers(dest="action", required=True)
    engine = commands.add_parser("engine", help="build an engine from a model")
    engine.add_argument("model", type=Path)
    engine.add_argument("engine", type=Path)
    engine.add_argument("rest", nargs="*", metavar="NAME=VALUE", help="for make: PRECISION, GPU, PRESET, TP")
    serve = commands.add_parser("serve", help="serve an engine")
    serve.add_argument("engine", type=Path)
    serve.add_argument("rest", nargs=argparse.REMAINDER, metavar="FLAG", help="for scripts/serve.py")
    return result


def _ports(text: str) -> tuple[int, ...]:
    ports = tuple(int(port) for port in text.split(","))
    if len(ports) != len(INSIDE_PORTS) or len(set(ports)) < len(ports):
        raise ValueError(text)
    return ports


def main() -> None:
    options = parser().parse_args()
    user = f"{os.getuid()}:{os.getgid()}"
    try:
        gpus = chosen_gpus(os.environ, options.gpus)
        if options.action == "engine":
            container = engine_container(
                options.image, options.model, options.engine, options.checkpoints, gpus, user, options.rest
            )
        else:
            publish = (options.publish, options.ports)
            container = serve_container(
                options.image, options.engine, gpus, user, publish, options.rest, options.config
            )
        program = options.program or ("docker" if options.dry_run else find_program())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    line = run_command(container, program)
    if options.dry_run:
        print(shlex.join(line))
        return
    for host, _, read_only in container.volumes:
        if not read_only:
            host.mkdir(parents=True, exist_ok=True)  # Docker would make it root's
    os.execvp(line[0], line)


if __name__ == "__main__":
    main()
