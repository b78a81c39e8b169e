"""A checkpoint directory that is not what it must be: one sentence that names the file and what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import MoeConfig
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.safetensors_writer import SafetensorsWriter
from mixtral_runtime.tensor_names import expected_specs

CONFIG = CheckpointConfig(
    dtype="bfloat16",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_size=8,
    norm_epsilon=1e-5,
    rotary_base=1e4,
    max_position_embeddings=64,
    moe=MoeConfig(num_experts=2, top_k=1),
)
WEIGHTS = "rank0.safetensors"
DENSE = "transformer.layers.0.attention.dense.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A good checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    specs = expected_specs(CONFIG)
    with SafetensorsWriter(tmp_path / WEIGHTS, specs) as writer:
        for number, spec in enumerate(specs):
            writer.write(spec.name, torch.full(spec.shape, number, dtype=spec.dtype))
    return tmp_path


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def complaint(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory).validate()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "rank0" in sentence or "config.json" in sentence or str(directory) in sentence
    return sentence


def test_a_good_checkpoint_is_read_back_as_it_was_written(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    checkpoint.validate()
    assert checkpoint.config == CONFIG
    for number, spec in enumerate(expected_specs(CONFIG)):
        tensor = checkpoint.tensor(spec.name)
        assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype)
        assert (tensor == number).all()


def test_tensors_are_views_of_the_mapped_file(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    first, second = checkpoint.tensor(DENSE), checkpoint.tensor(DENSE)
    assert first.data_ptr() == second.data_ptr()


def test_a_missing_directory(directory: Path) -> None:
    assert complaint(directory / "nowhere").endswith("nowhere is not a directory")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert complaint(directory).endswith(f"{name} does not exist")


@pytest.mark.parametrize("text", ["{", "", "\0"])
def test_a_config_that_is_not_json(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    assert "config.json is not JSON" in complaint(directory)


def test_a_config_that_is_not_an_object(directory: Path) -> None:
    (directory / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in complaint(directory)


def test_another_architecture(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG.to_json() | {"architecture": "LlamaForCausalLM"}))
    assert "config.json: the architecture is LlamaForCausalLM, only MixtralForCausalLM is" in complaint(directory)


def test_a_quant_algo_that_there_is_no_format_for(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG.to_json() | {"quantization": {"quant_algo": "NVFP4"}}))
    assert "precision NVFP4 is not known" in complaint(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_weights_that_are_cut_off(directory: Path, keep: int) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert "rank0.safetensors is damaged or cut off" in complaint(directory)


def test_a_missing_tensor(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.pop(DENSE))
    assert complaint(directory).endswith(f"has no tensor {DENSE}")
    with pytest.raises(CheckpointError, match="has no tensor"):
        Checkpoint.open(directory).tensor(DENSE)


def test_a_superfluous_tensor(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert complaint(directory).endswith("has a tensor that does not belong there, extra")


def test_a_wrong_dtype(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update({DENSE: tensors[DENSE].float()}))
    assert f"{DENSE} has dtype torch.float32, it must have torch.bfloat16" in complaint(directory)


def test_a_dtype_that_safetensors_knows_and_this_project_does_not(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update({DENSE: tensors[DENSE] > 0}))
    assert f"{DENSE} has dtype BOOL, which is not supported" in complaint(directory)


def test_a_wrong_shape(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update({DENSE: torch.zeros(3, 16, dtype=torch.bfloat16)}))
    assert f"{DENSE} has shape [3, 16], it must have [16, 16]" in complaint(directory)
