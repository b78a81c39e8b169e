"""A checkpoint larger than the memory runs from the page cache, to the same logits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_limit import MemoryLimit, memory_limit

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.plan import with_precision
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import expected_specs

TOKENS = list(range(3, 67))  # so many that every expert is met
# Joins the group when all but the weights is there: what a process has before it joins does not count in it.
PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.process_memory import process_memory
from mixtral_runtime.pytorch.model import MixtralModel

directory, tokens, room, limit, processes = json.loads(sys.argv[1])
torch.set_num_threads(1)
model = MixtralModel.load(Checkpoint.open(directory), "cpu")
if limit:
    Path(limit).write_text(str(room))
    Path(processes).write_text(str(os.getpid()))
first, second = (model.forward_logits(tokens) for _ in range(2))
assert torch.equal(first, second)
print(json.dumps({"logits": second.sum(0).tolist(), "mapped": process_memory().mapped}))
"""
ACTIVATIONS = 32 << 20  # bytes, more than enough


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory, mixtral_8x7b_json: dict[str, Any]) -> Path:
    """Random int8 weights of 275 MB."""
    directory = tmp_path_factory.mktemp("large")
    shape = {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 3, "num_attention_heads": 8}
    small = {"num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128}
    config = with_precision(CheckpointConfig.from_hf(mixtral_8x7b_json | shape | small), "int8")
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    generator = torch.Generator().manual_seed(0)
    specs = expected_specs(config)
    with SafetensorsWriter(directory / "rank0.safetensors", specs) as writer:
        for spec in specs:
            if spec.dtype == torch.int8:
                tensor = torch.randint(-127, 128, spec.shape, generator=generator, dtype=torch.int8)
            else:
                tensor = torch.randn(spec.shape, generator=generator).mul(2e-3).to(spec.dtype)
            writer.write(spec.name, tensor)
        writer.sync()
    return directory


def run(directory: Path, limit: MemoryLimit | None) -> dict[str, Any]:
    weights = directory / "rank0.safetensors"
    with weights.open("rb") as file:  # pages that another group has read would not count in this one
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    group = (None, None) if limit is None else (str(limit.limit), str(limit.processes))
    room = weights.stat().st_size // 2 + ACTIVATIONS
    arguments = json.dumps([str(directory), TOKENS, room, *group])
    done = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_half_of_the_weights_have_room(checkpoint_dir: Path) -> None:
    size = (checkpoint_dir / "rank0.safetensors").stat().st_size
    plenty = run(checkpoint_dir, None)
    assert plenty["mapped"] > size * 0.95  # else the model did not need all of them
    with memory_limit("mixtral-test") as limit:
        scarce = run(checkpoint_dir, limit)
    assert scarce["mapped"] < plenty["mapped"] - size / 4
    assert scarce["logits"] == plenty["logits"]
