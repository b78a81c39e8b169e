"""docs/deploy.md says what the programs say: figures of the planner, command lines of the build and of the launch.

And the command lines keep to NVIDIA's tuning guide, whose rules stand here as expectations.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_container import API_KEYS, BIND_ALL, Container, run_command, serve_container

from mixtral_build.cli import run
from mixtral_build.conversion_cost import conversion_steps
from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_build.machine_speed import MachineSpeed
from mixtral_build.plan import show_bytes, show_seconds
from mixtral_build.trtllm_command import kernel_layout
from mixtral_runtime.checkpoint import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import GB, find_device
from mixtral_runtime.formats import TensorSpec
from mixtral_runtime.plan import decode_floor_s, model_size, plan_memory, prefill_floor_s, with_precision
from mixtral_runtime.safetensors_writer import DTYPE_NAMES
from mixtral_runtime.tensor_names import expected_specs
from mixtral_serving.serve_config import ServeConfig
from mixtral_serving.server.command import Address, server_command
from mixtral_serving.server.installation import Installation

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
NAME = "Mixtral-8x7B-Instruct-v0.1"
# What the document says that its times assume: an SSD, and the two CPU cores that docs/build.md was measured on.
ASSUMED = MachineSpeed(read=2e9, quantize=0.6e9, write=1e9, checksum=1.2e9, multiply=1e12, search=None)
DOWNLOAD = 125e6  # bytes per second, of a line with 1 Gbit/s
IMAGE_BYTES = 14.2e9  # as NVIDIA lists it
CARDS = [("a100", "int8"), ("h100", "fp8"), ("h200", "fp8")]
COMBINATIONS = [(card, precision, preset) for card, precision in CARDS[:2] for preset in ("latency", "throughput")]


@pytest.fixture(scope="module")
def model(mixtral_8x7b_json: dict[str, Any]) -> CheckpointConfig:
    """As published, in bfloat16."""
    return CheckpointConfig.from_hf(mixtral_8x7b_json)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def steps_table(model: CheckpointConfig, card: str, precision: str) -> str:
    """Each step on the way: what stays on disk, memory of the machine or the card, and time."""
    config, device = with_precision(model, precision), find_device(card)
    size = model_size(config)
    memory = plan_memory(config, device, max_num_tokens=2048, max_batch_size=16)
    steps = {
        step.name: step for step in conversion_steps(config, size, ASSUMED, calibration_tokens=None, tensorrt_llm=True)
    }
    download = 2 * size.parameters
    table = row("step", "disk", "memory", "time") + row("---", "---", "---", "---")
    table += row("image", f"{show_bytes(int(IMAGE_BYTES))} to download", "", show_seconds(IMAGE_BYTES / DOWNLOAD))
    table += row("download", show_bytes(download), "", show_seconds(download / DOWNLOAD))
    for name, label in (("calibrate", "calibrate"), ("quantize", "quantise")):
        if step := steps.get(name):
            assert step.seconds is not None
            disk = show_bytes(step.disk) if step.disk else ""
            table += row(label, disk, show_bytes(step.memory), show_seconds(step.seconds))
    build = steps["engine for tensorrt-llm"]
    assert build.seconds is None
    table += row("`trtllm-build`", show_bytes(build.disk), f"{show_bytes(build.memory)}, a guess", "not known")
    card_bytes = f"{show_bytes(memory.weights)} and {show_bytes(memory.workspace)} of the card"
    table += row("load", "", card_bytes, show_seconds(build.disk / ASSUMED.read))
    prompt, token = prefill_floor_s(config, size, device, 512), decode_floor_s(size, device)
    assert prompt is not None
    assert token is not None
    table += row("first token of a 512-token prompt", "", "", f"{(max(prompt) + token) * 1e3:.0f} ms at least")
    total = download + steps["quantize"].disk + build.disk
    return table + row("**disk in all**", f"**{show_bytes(total)}** and the image", "", "")


def sizing_table(model: CheckpointConfig) -> str:
    """What fits beside the weights, at the throughput preset's steps."""
    table = row("", *(f"{card.upper()}, {precision}" for card, precision in CARDS)) + row(*["---"] * 4)
    configs = [with_precision(model, precision) for _, precision in CARDS]
    devices = [find_device(card) for card, _ in CARDS]
    plans = [plan_memory(config, device, 8192, 64) for config, device in zip(configs, devices, strict=True)]
    table += row("weights", *(f"{plan.weights / GB:.1f} GB" for plan in plans))
    table += row("workspace, estimated", *(f"{plan.workspace / GB:.1f} GB" for plan in plans))
    table += row("KV cache of a token", *(f"{plan.kv_bytes_per_token // 1024} KiB" for plan in plans))
    table += row("tokens in the KV cache", *(f"{plan.kv_tokens:,}" for plan in plans))
    for tokens in (1024, 2048, 8192, 32768):
        table += row(f"users at once, {tokens:,} tokens each", *(str(plan.largest_batch(tokens)) for plan in plans))
    for preset in ("latency", "throughput"):
        limits = [plan_limits(c, d, LimitOverrides(), preset) for c, d in zip(configs, devices, strict=True)]
        table += row(f"`max_batch_size`, {preset}", *(str(limit.max_batch_size) for limit in limits))
    floors = [decode_floor_s(model_size(config), device) for config, device in zip(configs, devices, strict=True)]
    return table + row("tokens/s of one user, at most", *(f"{1 / floor:.0f}" for floor in floors if floor))


@pytest.mark.parametrize(("card", "precision"), CARDS[:2])
def test_cost_of_each_step_is_the_planners(model: CheckpointConfig, card: str, precision: str) -> None:
    table = steps_table(model, card, precision)
    assert table in DOC, f"docs/deploy.md should have\n{table}"


def test_sizing_is_the_planners(model: CheckpointConfig) -> None:
    table = sizing_table(model)
    assert table in DOC, f"docs/deploy.md should have\n{table}"


@pytest.fixture(scope="module")
def checkpoints(model: CheckpointConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `checkpoints/NAME-int8` and `-fp8` have every tensor of the real model in full size, as a hole."""
    folder = tmp_path_factory.mktemp("deploy")
    for card, precision in CARDS[:2]:
        directory = folder / "checkpoints" / f"{NAME}-{precision}"
        (directory / TOKENIZER_NAME).mkdir(parents=True)
        config = with_precision(model, precision)
        if config.layout is not None:
            config = replace(config, layout=kernel_layout(find_device(card)))
        (directory / CONFIG_NAME).write_text(json.dumps(config.to_json()))
        write_holes(directory / WEIGHTS_NAME, expected_specs(config))
    return folder


def write_holes(path: Path, specs: list[TensorSpec]) -> None:
    """A safetensors file whose tensors take no room on disk."""
    header: dict[str, Any] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
        start, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def documented_commands(program: str) -> Iterator[list[str]]:
    """Those in the document's indented blocks whose first word is `program`, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOC)
    for line in joined.splitlines():
        if line.startswith(f"    {program} "):
            yield shlex.split(line)


@pytest.fixture
def built(
    checkpoints: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, str, str], list[str]]:
    """What `mixtral-build engine --dry-run` prints, by card, precision and preset."""
    monkeypatch.chdir(checkpoints)
    found = {}
    for card, precision, preset in COMBINATIONS:
        arguments = [f"checkpoints/{NAME}-{precision}", f"engines/mixtral-{precision}-{preset}"]
        options = ["--runtime", "tensorrt-llm", "--gpu", card, "--preset", preset, "--dry-run"]
        assert run(["engine", *arguments, *options]) == 0
        found[card, precision, preset] = shlex.split(capsys.readouterr().out)
    return found


def test_build_command_lines_are_what_would_be_run(built: dict[tuple[str, str, str], list[str]]) -> None:
    assert list(documented_commands("trtllm-build")) == list(built.values())


def test_build_command_lines_keep_to_the_tuning_guide(built: dict[tuple[str, str, str], list[str]]) -> None:
    """NVIDIA's useful-build-time-flags, tuning-max-batch-size-and-max-num-tokens and fp8-quantization."""
    for (_, precision, preset), command in built.items():
        flags = dict(zip(command[1::2], command[2::2], strict=True))
        assert flags["--gemm_plugin"] == ("disable" if precision == "fp8" else "auto")
        assert flags["--use_fp8_context_fmha"] == ("enable" if precision == "fp8" else "disable")
        for name in ("--use_paged_context_fmha", "--multiple_profiles", "--remove_input_padding", "--context_fmha"):
            assert flags[name] == "enable"
        assert (flags["--moe_plugin"], flags["--kv_cache_type"]) == ("auto", "paged")
        for absent in ("--opt_num_tokens", "--reduce_fusion", "--gemm_swiglu_plugin", "--low_latency_gemm_plugin"):
            assert absent not in flags
        batch, tokens = int(flags["--max_batch_size"]), int(flags["--max_num_tokens"])
        if preset == "latency":
            assert 8 <= batch <= 32
            assert 1024 <= tokens <= 2048
        else:
            # 256 to 512; what the KV cache does not hold at 1,024 tokens each would wait anyway.
            assert batch == {"fp8": 256, "int8": 128}[precision]
            assert 4096 <= tokens <= 8192
        assert int(flags["--max_seq_len"]) == 32768


def launch_lines() -> list[list[str]]:
    """`make container-serve` of each combination, with the folders of the document."""
    found = []
    for _, precision, preset in COMBINATIONS:
        name = f"mixtral-{precision}-{preset}"
        command = ["python3", "scripts/serve.py", "--engine", f"engines/{name}", *BIND_ALL]
        volumes = [(Path(f"/srv/engines/{name}"), f"/engines/{name}", True)]
        if preset == "throughput":
            command += ["--config", "/config/throughput.toml"]
            volumes.append((Path("/srv/mixtral-triton/deploy"), "/config", True))
        publish = ("127.0.0.1", (8000, 8001, 8002, 8003, 9000))
        container = Container(
            "mixtral-triton:latest", tuple(command), tuple(volumes), publish=publish, pass_on=(API_KEYS,)
        )
        found.append(run_command(container, "docker"))
    return found


def test_launch_command_lines_are_what_would_be_run(tmp_path: Path) -> None:
    documented = [command for command in documented_commands("docker") if "scripts/serve.py" in command]
    assert documented == launch_lines()
    # And those are made as `make container-serve` makes them.
    (tmp_path / "manifest.json").write_text("{}")
    settings = ROOT / "deploy" / "throughput.toml"
    publish = ("127.0.0.1", (8000, 8001, 8002, 8003, 9000))
    made = serve_container("mixtral-triton:latest", tmp_path, ("0",), "1000:1000", publish, [], settings)
    line = shlex.join(run_command(made, "docker")).replace(f"{ROOT}/deploy", "/srv/mixtral-triton/deploy")
    name = "mixtral-fp8-throughput"
    expected = line.replace(str(tmp_path), f"/srv/engines/{name}").replace(tmp_path.name, name)
    assert shlex.split(expected) == launch_lines()[-1]


def test_the_server_started_inside_is_the_documented_one() -> None:
    installation = Installation(Path("/opt/tritonserver/bin/tritonserver"), None, ())
    repository = Path("/opt/mixtral-triton/model_repository")
    expected = server_command(installation, repository, Address("0.0.0.0"), "mixtral-PID-TIME-")
    (documented,) = documented_commands("/opt/tritonserver/bin/tritonserver")
    assert documented == expected


def test_launch_settings_keep_to_the_tuning_guide() -> None:
    latency, throughput = ServeConfig(), ServeConfig.load(ROOT / "deploy" / "throughput.toml")
    for settings in (latency, throughput):
        assert settings.tensorrt_llm.chunked_context
        assert settings.tensorrt_llm.kv_cache_block_reuse
    assert 0.90 <= throughput.tensorrt_llm.kv_cache_free_gpu_memory_fraction <= 0.95


def test_make_targets_and_files_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`| {4})make ([a-z][a-z-]+)", DOC):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)", DOC):
        assert (ROOT / "docs" / link).exists(), link
