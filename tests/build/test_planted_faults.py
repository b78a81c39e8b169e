"""The quality measurement on the demo model: int8 passes it, and faults that a converter could well have do not.

Measured by the mean KL divergence from the 16-bit model: two exchanged scales move perplexity by some tenths of a
percent only, which is what another text would do too.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_build.compare import Comparison, compare_models
from mixtral_build.model_directory import ModelDirectory
from mixtral_build.quantize import quantize_model
from mixtral_build.texts import read_texts

MODEL = Path(__file__).parents[2] / "models" / "tiny-mixtral"
LAYER = "transformer.layers.0."
WEIGHTS = "rank0.safetensors"


def compare(a: Path, b: Path, texts: list[str]) -> Comparison:
    return compare_models(ModelDirectory.open(a), ModelDirectory.open(b), texts)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(read_texts(MODEL / "heldout.jsonl"))[::4]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dense") / "checkpoint"
    quantize_model(MODEL, target, "16bit")
    return target


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "checkpoint"
    quantize_model(MODEL, target, "int8")
    return target


@pytest.fixture(scope="module")
def honest(dense: Path, int8: Path, texts: list[str]) -> Comparison:
    return compare(dense, int8, texts)


def swap_two_scales(tensors: dict[str, Tensor]) -> None:
    """Those of the channels with the largest and the smallest, in each matrix of one layer."""
    for name, scales in tensors.items():
        if name.startswith(LAYER) and name.endswith("per_channel_scale"):
            for channels in scales.view(-1, scales.shape[-1]):
                pair = torch.stack([channels.float().argmin(), channels.float().argmax()])
                channels[pair] = channels[pair.flip(0)]


def exchange_gate_and_up_projection(tensors: dict[str, Tensor]) -> None:
    """The order of w1 and w3 in one layer's `mlp.fc`."""
    for name in ("weight", "per_channel_scale"):
        stacked = tensors[f"{LAYER}mlp.fc.{name}"]  # [experts, 2 * intermediate, ...]
        tensors[f"{LAYER}mlp.fc.{name}"] = torch.cat(stacked.chunk(2, dim=1)[::-1], dim=1)


def shift_the_rows_of_one_expert(tensors: dict[str, Tensor]) -> None:
    rows = tensors[f"{LAYER}mlp.proj.weight"][0]
    rows.copy_(rows.roll(1, dims=0))


def test_int8_costs_less_than_a_thousandth_of_perplexity(honest: Comparison) -> None:
    assert honest.tokens > 5000
    assert honest.perplexity_b == pytest.approx(honest.perplexity_a, rel=1e-3)
    assert honest.top1_agreement > 0.99


def test_a_checkpoint_does_not_differ_from_itself(int8: Path, texts: list[str]) -> None:
    same = compare(int8, int8, texts[:5])
    assert same.mean_kl == 0
    assert same.top1_agreement == 1
    assert same.perplexity_a == same.perplexity_b


@pytest.mark.parametrize(
    "plant", [swap_two_scales, exchange_gate_and_up_projection, shift_the_rows_of_one_expert], ids=lambda f: f.__name__
)
def test_a_fault_multiplies_the_divergence_by_ten(
    plant: Callable[[dict[str, Tensor]], None],
    dense: Path,
    int8: Path,
    honest: Comparison,
    texts: list[str],
    tmp_path: Path,
) -> None:
    faulty = Path(shutil.copytree(int8, tmp_path / "faulty"))
    tensors = load_file(faulty / WEIGHTS)
    plant(tensors)
    save_file(tensors, faulty / WEIGHTS)
    assert compare(dense, faulty, texts).mean_kl > 10 * honest.mean_kl
