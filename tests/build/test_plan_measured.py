"""What `mixtral-build plan` says of a conversion, against the conversion: disk and memory; time is printed only."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtral_build.hf_checkpoint import SINGLE_NAME
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import weights

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SAMPLES, TOKENS = 4, 256  # of calibration


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """420 MB of bfloat16: an expert's matrix outweighs the interpreter's own ups and downs."""
    directory = tmp_path_factory.mktemp("big")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((demo_model / name).read_bytes())
    config = CheckpointConfig.from_hf(CONFIG)
    specs = [part for weight in weights(config) for parts in weight.parts for part in parts]
    noise = torch.randn(4096 * 1024, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    with SafetensorsWriter(
        directory / SINGLE_NAME, [type(s)(s.name, s.shape, torch.bfloat16) for s in specs]
    ) as writer:
        for spec in specs:
            writer.write(spec.name, noise[: spec.nbytes // spec.dtype.itemsize].view(spec.shape))
    return directory


def run(*arguments: object) -> tuple[dict[str, Any], int, float]:
    """The command's JSON, the most anonymous memory it had in bytes, and the seconds it took."""
    command = [sys.executable, "-m", "mixtral_build", *map(str, arguments), "--json"]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        assert process.returncode == 0
        return json.loads(process.stdout.read()), peak, seconds


def anonymous_bytes(process_id: int) -> int:
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except FileNotFoundError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_disk_and_memory_are_as_planned(
    big_model: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = ("--calib-samples", SAMPLES, "--calib-tokens", TOKENS)
    plan, _, _ = run(
        "plan", big_model, "--precision", precision, "--gpu", "cpu", "--work-dir", tmp_path,
        "--calibration-tokens", SAMPLES * TOKENS,
    )  # fmt: skip
    made, peak, seconds = run("quantize", big_model, tmp_path / "out", "--precision", precision, *calibration)
    steps = [step for step in plan["steps"] if step["name"] in ("calibrate", "quantize")]
    planned_bytes = sum(step["disk"] for step in steps)
    planned_peak = max(step["memory"] for step in steps)
    planned_s = sum(step["seconds"] for step in steps)
    with capsys.disabled():
        print(
            f"\n{precision}: planned / found: disk {planned_bytes / made['bytes']:.3f}, "
            f"memory {planned_peak / peak:.2f} of {peak >> 20} MiB, time {planned_s / seconds:.2f} of {seconds:.1f} s"
        )
    assert planned_bytes == pytest.approx(made["bytes"], rel=0.001)
    assert planned_bytes == pytest.approx(plan["size"]["weights"], rel=0.001)
    assert 0.5 < planned_peak / peak < 2.0
