"""The quality measurement on the demo model in 4 bits: what AWQ costs, and faults that must show at least tenfold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.compare import Comparison, compare_models
from mixtral_build.model_directory import ModelDirectory
from mixtral_build.quantize import quantize_model
from mixtral_build.texts import read_texts

LAYER = "transformer.layers.0."
WEIGHTS = "rank0.safetensors"
MATRICES = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")


@pytest.fixture(scope="module")
def texts(demo_model: Path) -> list[str]:
    return list(read_texts(demo_model / "heldout.jsonl"))[::8]


@pytest.fixture(scope="module")
def dense(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dense") / "checkpoint"
    quantize_model(demo_model, target, "16bit")
    return target


@pytest.fixture(scope="module")
def awq(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("awq") / "checkpoint"
    quantize_model(demo_model, target, "awq", calibration=CalibrationOptions(samples=64))
    return target


def compare(a: Path, b: Path, texts: list[str]) -> Comparison:
    return compare_models(ModelDirectory.open(a), ModelDirectory.open(b), texts)


@pytest.fixture(scope="module")
def honest(dense: Path, awq: Path, texts: list[str]) -> Comparison:
    return compare(dense, awq, texts)


def flip_one_bit_of_every_word(tensors: dict[str, Tensor]) -> None:
    """The sign of the even rows, as when unsigned values are taken for signed ones, in the matrices of one layer."""
    for name in MATRICES:
        tensors[f"{LAYER}{name}.weight"].bitwise_xor_(8)


def exchange_the_values_of_a_byte(tensors: dict[str, Tensor]) -> None:
    """High nibble for low nibble, in one layer."""
    for name in MATRICES:
        packed = tensors[f"{LAYER}{name}.weight"]
        packed.copy_((packed << 4) | (packed >> 4 & 0x0F))


def put_scales_in_another_order(tensors: dict[str, Tensor]) -> None:
    """Of one layer: the transposed order, in which TensorRT-LLM's kernels read them."""
    for name in MATRICES:
        scales = tensors[f"{LAYER}{name}.weights_scaling_factor"]  # [..., out, in / 128]
        scales.copy_(scales.transpose(-1, -2).reshape(scales.shape))


def divide_activations_by_what_they_should_be_multiplied_with(tensors: dict[str, Tensor]) -> None:
    for name in MATRICES:
        tensors[f"{LAYER}{name}.prequant_scaling_factor"].reciprocal_()


def shift_the_rows_of_one_expert(tensors: dict[str, Tensor]) -> None:
    rows = tensors[f"{LAYER}mlp.proj.weight"][0]
    rows.copy_(rows.roll(1, dims=0))


FAULTS = [
    flip_one_bit_of_every_word,
    exchange_the_values_of_a_byte,
    put_scales_in_another_order,
    divide_activations_by_what_they_should_be_multiplied_with,
    shift_the_rows_of_one_expert,
]


def test_awq_costs_less_than_a_hundredth_of_perplexity(honest: Comparison) -> None:
    assert honest.tokens > 2500
    assert honest.perplexity_b == pytest.approx(honest.perplexity_a, rel=1e-2)
    assert honest.top1_agreement > 0.95


@pytest.mark.parametrize("plant", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_multiplies_the_divergence_by_ten(
    plant: Callable[[dict[str, Tensor]], None],
    dense: Path,
    awq: Path,
    honest: Comparison,
    texts: list[str],
    tmp_path: Path,
) -> None:
    faulty = Path(shutil.copytree(awq, tmp_path / "faulty"))
    tensors = load_file(faulty / WEIGHTS)
    plant(tensors)
    save_file(tensors, faulty / WEIGHTS)
    assert compare(dense, faulty, texts).mean_kl > 10 * honest.mean_kl
