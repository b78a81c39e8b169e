"""A checkpoint of ours beside the library's: planted differences each give their line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from container_check.check import Failed, NotAvailable, Status
from container_check.converted import CONVERT, int8, judge, sixteen_bit, write_model
from container_check.machine import Gpu, look_around
from container_check.workplace import Workplace
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_build.quantize import quantize_model

A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920, "8.0")
QKV = "transformer.layers.0.attention.qkv.weight"
# Converts with this project's own code, so that all but the library's arithmetic is exercised.
SCRIPT = """
import argparse, sys
from pathlib import Path
from mixtral_build.quantize import quantize_model
parser = argparse.ArgumentParser()
for name in ("model_dir", "output_dir", "dtype", "weight_only_precision"):
    parser.add_argument(f"--{name}")
parser.add_argument("--use_weight_only", action="store_true")
given = parser.parse_args()
print("a banner, as the real one has")
precision = "int8" if given.use_weight_only else "16bit"
layout = "sm80" if given.use_weight_only else None
quantize_model(Path(given.model_dir), Path(given.output_dir), precision, layout=layout, dtype=given.dtype)
"""
# The three modules and names that NVIDIA's script calls.
LIBRARY = {
    "__init__.py": "",
    "models/__init__.py": """
from pathlib import Path
from mixtral_build.quantize import quantize_model

class LLaMAForCausalLM:
    @classmethod
    def from_hugging_face(cls, model_dir, dtype, quant_config):
        model = cls()
        model.given = model_dir, dtype, quant_config.quant_algo
        return model

    def save_checkpoint(self, target_dir, save_config):
        model_dir, dtype, algorithm = self.given
        precision, layout = ("int8", "sm80") if algorithm else ("16bit", None)
        quantize_model(Path(model_dir), Path(target_dir), precision, layout=layout, dtype=dtype)
""",
    "models/modeling_utils.py": """
class QuantConfig:
    def __init__(self, quant_algo=None):
        self.quant_algo = quant_algo
""",
    "quantization.py": "class QuantAlgo:\n    W8A16 = 'W8A16'\n",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """A folder with `model` and its int8 checkpoint `ours`; do not change it."""
    folder = tmp_path_factory.mktemp("pair")
    write_model(folder / "model", demo_model)
    quantize_model(folder / "model", folder / "ours", "int8", layout="sm80", dtype="float16")
    return folder


@pytest.fixture
def theirs(pair: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pair / "ours", tmp_path / "theirs"))


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "rank0.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def faults(pair: Path, theirs: Path) -> list[str]:
    with pytest.raises(Failed) as failure:
        judge(pair / "ours", theirs, "a test")
    assert failure.value.advice is not None
    return list(failure.value.args)


def test_equal_checkpoints_pass(pair: Path, theirs: Path) -> None:
    outcome = judge(pair / "ours", theirs, "a test")
    assert outcome.details == ("14 tensors are the same to the last byte, theirs by a test",)


def test_one_value_in_another_place(pair: Path, theirs: Path) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        flat = tensors[QKV].flatten()
        flat[0], flat[7] = 5, 6

    change_tensors(theirs, swap)
    (line, *_) = faults(pair, theirs)
    assert line.startswith(f"{QKV}: 2 of {512 * 1024} values differ, the first at 0: ")
    assert line.endswith("theirs 5")


def test_names_shapes_and_dtypes(pair: Path, theirs: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.layers.0.attention.query.weight"] = tensors.pop(QKV)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].t().contiguous()
        tensors["transformer.ln_f.weight"] = tensors["transformer.ln_f.weight"].float()

    change_tensors(theirs, change)
    assert faults(pair, theirs)[:4] == [
        f"{QKV}: only in ours",
        "transformer.layers.0.attention.query.weight: only in theirs, int8 [512, 1024]",
        "lm_head.weight: float16 [320, 512], theirs float16 [512, 320]",
        "transformer.ln_f.weight: float16 [512], theirs float32 [512]",
    ]


def fill(tensors: dict[str, Tensor], value: float) -> None:
    tensors["transformer.ln_f.weight"].fill_(value)


def test_the_sign_of_a_zero(pair: Path, theirs: Path) -> None:
    for directory, zero in ((theirs, -0.0), (theirs.parent / "ours", 0.0)):
        if not directory.exists():
            shutil.copytree(pair / "ours", directory)
        change_tensors(directory, partial(fill, value=zero))
    (line, *_) = faults(theirs.parent, theirs)
    assert line == "transformer.ln_f.weight: the same values in other bits (signs of zeros, NaNs)"


def test_a_config_that_means_something_else(pair: Path, theirs: Path) -> None:
    change_config(theirs, lambda data: data["moe"].update(normalization_mode=2))
    assert any(line.startswith("config.json: moe is ") or "normalization_mode" in line for line in faults(pair, theirs))


def test_a_config_that_ours_does_not_read(pair: Path, theirs: Path) -> None:
    change_config(theirs, lambda data: data.update(hidden_act="gelu"))
    assert any(line.startswith("config.json: ours does not read theirs: ") for line in faults(pair, theirs))


def test_a_config_with_other_words_only_gives_remarks(pair: Path, theirs: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["producer"] = {"name": "x"}
        del data["has_partial_lora_mask"], data["mixtral"]
        data["logits_dtype"] = "float16"

    change_config(theirs, change)
    outcome = judge(pair / "ours", theirs, "a test")
    assert outcome.status == Status.PASS
    assert outcome.details[1:] == (
        "config.json: only ours has has_partial_lora_mask",
        "config.json: only theirs has producer.name",
        "config.json: logits_dtype is float32, theirs float16",
    )


def test_the_model_is_the_same_for_everyone_and_has_no_two_axes_alike(pair: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "again", pair / "model")
    first, second = (load_file(folder / "model.safetensors") for folder in (pair / "model", tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(len(set(t.shape)) == t.ndim or ".q_proj" in name or ".o_proj" in name for name, t in first.items())


def workplace(tmp_path: Path, demo_model: Path, gpu: Gpu | None = A100) -> Workplace:
    machine = replace(look_around(), gpus=(gpu,) if gpu else ())
    folder, modules = tmp_path / "work", tmp_path / "modules" / "stand_in"
    for name, source in LIBRARY.items():
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_text(source)
    folder.mkdir()
    environment = {"PYTHONPATH": str(modules.parent)}
    return Workplace(folder, demo_model, machine, library="stand_in", app=tmp_path / "app", environment=environment)


def put_script(app: Path, source: str) -> None:
    (app / CONVERT).parent.mkdir(parents=True)
    (app / CONVERT).write_text(source)


def test_the_images_script_is_taken_where_it_is(tmp_path: Path, demo_model: Path) -> None:
    place = workplace(tmp_path, demo_model)
    put_script(place.app, SCRIPT)
    outcome = int8(place)
    assert outcome.details[0] == f"14 tensors are the same to the last byte, theirs by {CONVERT}"
    assert sixteen_bit(place).status == Status.PASS


def test_without_it_the_library_is_called(tmp_path: Path, demo_model: Path) -> None:
    place = workplace(tmp_path, demo_model)
    assert int8(place).details[0].endswith("theirs by LLaMAForCausalLM.from_hugging_face")


def test_another_layout_shows(tmp_path: Path, demo_model: Path) -> None:
    """As on an H100 whose library would not leave out the interleave: only attention differs there."""
    place = workplace(tmp_path, demo_model, Gpu("NVIDIA H100", 81559, "9.0"))
    put_script(place.app, SCRIPT)
    with pytest.raises(Failed) as failure:
        int8(place)
    names = [line.split(":")[0] for line in failure.value.args if "values differ" in line]
    assert names == ["transformer.layers.0.attention.dense.weight", QKV]


def test_a_conversion_that_fails_says_its_last_words(tmp_path: Path, demo_model: Path) -> None:
    place = workplace(tmp_path, demo_model)
    put_script(place.app, "raise SystemExit('no kernel for this')")
    with pytest.raises(Failed) as failure:
        int8(place)
    assert failure.value.args[-1] == "no kernel for this"


def test_without_a_gpu_nothing_is_known(tmp_path: Path, demo_model: Path) -> None:
    with pytest.raises(NotAvailable, match="there is no GPU"):
        int8(workplace(tmp_path, demo_model, gpu=None))
