"""A model or target that cannot be used: one sentence, before anything is written under the target's name."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_build.quantize import quantize_model
from mixtral_runtime.errors import MixtralError

ROUTER = "model.layers.0.block_sparse_moe.gate.weight"


def complaint(model_dir: Path, precision: str = "int8", layout: str | None = None, dtype: str | None = None) -> str:
    target = model_dir.parent / "out"
    with pytest.raises(MixtralError) as caught:
        quantize_model(model_dir, target, precision, layout=layout, dtype=dtype)
    assert not target.exists()
    assert not (target.parent / ".out.partial").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_shard(model_dir: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the shard that holds the tensor."""
    index = json.loads((model_dir / "model.safetensors.index.json").read_text())
    path = model_dir / index["weight_map"][name]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_missing_directory(tmp_path: Path) -> None:
    assert complaint(tmp_path / "model").endswith("model is not a directory")


def test_a_missing_config(model_dir: Path) -> None:
    (model_dir / "config.json").unlink()
    assert complaint(model_dir).endswith("config.json does not exist")


def test_another_architecture(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text()) | {"architectures": ["MistralForCausalLM"]}
    (model_dir / "config.json").write_text(json.dumps(config))
    assert "config.json: the architecture is MistralForCausalLM, only MixtralForCausalLM" in complaint(model_dir)


def test_no_weights(model_dir: Path) -> None:
    (model_dir / "model.safetensors.index.json").unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in complaint(model_dir)


def test_an_index_that_is_none(model_dir: Path) -> None:
    (model_dir / "model.safetensors.index.json").write_text('{"weights": 3}')
    assert "is not an index of safetensors files" in complaint(model_dir)


def test_a_shard_that_is_missing(model_dir: Path) -> None:
    shard = sorted(model_dir.glob("*.safetensors"))[1]
    shard.unlink()
    assert complaint(model_dir).endswith(f"{shard.name} does not exist")


def test_a_shard_that_is_cut_off(model_dir: Path) -> None:
    shard = sorted(model_dir.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard.name} is damaged or cut off" in complaint(model_dir)


def test_a_missing_tensor(model_dir: Path) -> None:
    change_shard(model_dir, ROUTER, lambda tensors: tensors.pop(ROUTER))
    assert f"disagrees with the shards: {ROUTER} is not in model-" in complaint(model_dir)


def test_a_tensor_of_another_shape(model_dir: Path) -> None:
    change_shard(model_dir, ROUTER, lambda tensors: tensors.update({ROUTER: torch.zeros(5, 64)}))
    assert f"{ROUTER} has shape [5, 64], it must have [4, 64]" in complaint(model_dir)


def test_a_model_that_is_quantised_already(model_dir: Path) -> None:
    change_shard(model_dir, ROUTER, lambda tensors: tensors.update({ROUTER: torch.zeros(4, 64, dtype=torch.int8)}))
    assert f"{ROUTER} has dtype torch.int8, only models in 16 or 32 bits" in complaint(model_dir)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(model_dir: Path, value: float) -> None:
    change_shard(model_dir, ROUTER, lambda tensors: tensors[ROUTER].view(-1)[3].fill_(value))
    assert f"{ROUTER} has values that are infinite or not a number" in complaint(model_dir)


def test_weights_that_the_dtype_cannot_hold(model_dir: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    change_shard(model_dir, name, lambda tensors: tensors[name].view(-1)[3].fill_(1e5))
    assert f"{name} has values that are infinite or not a number in float16" in complaint(model_dir, dtype="float16")


def test_no_tokenizer(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    assert "has neither tokenizer.json nor tokenizer.model" in complaint(model_dir)


def test_a_layout_for_a_precision_that_has_none(model_dir: Path) -> None:
    assert complaint(model_dir, "16bit", "sm80") == "the layout is sm80, precision 16bit has none"


def test_sizes_that_a_kernel_layout_cannot_take(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text()) | {"intermediate_size": 100}
    (model_dir / "config.json").write_text(json.dumps(config))
    assert "mlp.fc.weight has 200 output features" in complaint(model_dir, layout="sm80")


def test_a_target_that_exists_is_not_touched(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("precious")
    with pytest.raises(MixtralError, match="exists already; remove it or choose another directory"):
        quantize_model(saved_model, tmp_path, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_target_that_another_process_is_making(saved_model: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "rank0.safetensors").write_text("half")
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(MixtralError, match="out is being made by another process"):
            quantize_model(saved_model, tmp_path / "out", "int8")
        assert (partial / "rank0.safetensors").read_text() == "half"
    finally:
        os.close(lock)
