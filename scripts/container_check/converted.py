"""A one-layer Mixtral converted by TensorRT-LLM itself and by us, compared tensor by tensor."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from container_check.check import Failed, NotAvailable, Outcome
from container_check.workplace import Workplace
from mixtral_build.hf_checkpoint import TOKENIZER_FILES
from mixtral_build.quantize import quantize_model
from mixtral_build.trtllm_command import kernel_layout
from mixtral_runtime.checkpoint import CONFIG_NAME, Checkpoint, read_config, weights_name
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.safetensors_reader import SafetensorsFile, tensor_bytes
from mixtral_runtime.tensor_names import weights

CONVERT = Path("examples/models/core/llama/convert_checkpoint.py")  # of Mixtral too; below the app folder
TIMEOUT_S = 900
MODEL_SEED = 0
# Mixtral's head size, experts and square query; the rest small, and no two sizes alike, so that a swapped axis shows.
MODEL = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
    "model_type": "mixtral",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 320,
}
ADVICE = "engines built from our checkpoints would differ from NVIDIA's: send the JSON report with the folder of --keep"


def int8(workplace: Workplace) -> Outcome:
    return _check(workplace, "int8", "float16")


def sixteen_bit(workplace: Workplace) -> Outcome:
    return _check(workplace, "16bit", "bfloat16")


def _check(workplace: Workplace, precision: str, dtype: str) -> Outcome:
    gpu = workplace.gpu
    if gpu is None:
        raise NotAvailable("the library converts for the GPU that it finds, and there is no GPU")
    folder = workplace.folder / f"converted-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder / "model", tokenizer_from=workplace.model)
    layout = kernel_layout(Device(gpu.name, f"sm{gpu.sm}", gpu.memory_mib * 2**20)) if precision == "int8" else None
    quantize_model(folder / "model", folder / "ours", precision, layout=layout, dtype=dtype)
    script = workplace.app / CONVERT
    done = workplace.program(
        "convert",
        *(["--script", script] if script.is_file() else []),
        workplace.library,
        folder / "model",
        folder / "theirs",
        precision,
        dtype,
        timeout_s=TIMEOUT_S,
    )
    if done.status != 0 or not (folder / "theirs" / CONFIG_NAME).is_file():
        raise Failed(f"the library's conversion ended with status {done.status}, its last lines:", *done.last_lines)
    route = str(CONVERT) if script.is_file() else "LLaMAForCausalLM.from_hugging_face"
    return judge(folder / "ours", folder / "theirs", route)


def write_model(directory: Path, tokenizer_from: Path) -> None:
    """A Hugging Face model with random weights, the same for everyone."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(MODEL_SEED)
    parts = [part for weight in weights(CheckpointConfig.from_hf(MODEL)) for group in weight.parts for part in group]
    # Norms too are random: a norm left out would not show in ones.
    tensors = {part.name: torch.randn(part.shape, generator=generator).mul_(0.02).bfloat16() for part in parts}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / CONFIG_NAME).write_text(json.dumps(MODEL, indent=2) + "\n", encoding="utf-8")
    for path in tokenizer_from.iterdir():
        if path.name in TOKENIZER_FILES:
            shutil.copy(path, directory / path.name)


def judge(ours: Path, theirs: Path, route: str) -> Outcome:
    """route: how theirs was made."""
    faults = [*tensor_differences(ours, theirs), *config_differences(ours, theirs)]
    remarks = config_remarks(ours, theirs)
    if faults:
        raise Failed(*faults, *remarks, f"theirs is by {route}", advice=ADVICE)
    count = len(Checkpoint.open(ours).names())
    return Outcome.passed(f"{count} tensors are the same to the last byte, theirs by {route}", *remarks)


def tensor_differences(ours: Path, theirs: Path) -> Iterator[str]:
    """Names, shapes, dtypes and bytes."""
    our_file, their_file = (SafetensorsFile(directory / weights_name(0)) for directory in (ours, theirs))
    for name in sorted(our_file.names() - their_file.names()):
        yield f"{name}: only in ours"
    for name in sorted(their_file.names() - our_file.names()):
        yield f"{name}: only in theirs, {_describe(their_file.tensor(name))}"
    for name in sorted(our_file.names() & their_file.names()):
        mine, other = our_file.tensor(name), their_file.tensor(name)
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            yield f"{name}: {_describe(mine)}, theirs {_describe(other)}"
        elif tensor_bytes(mine) != tensor_bytes(other):
            yield f"{name}: {_values(mine, other)}"


def config_differences(ours: Path, theirs: Path) -> Iterator[str]:
    """What our reader takes from both files of config, beside the arrangement that only we note down."""
    our_config = read_config(ours)
    try:
        # Theirs has no section of ours, which says how int8 weights are laid out.
        configs = (our_config, read_config(theirs) | {"mixtral": our_config["mixtral"]})
        mine, other = (asdict(CheckpointConfig.from_json(config)) for config in configs)
    except CheckpointError as error:
        yield f"{CONFIG_NAME}: ours does not read theirs: {error}"
        return
    for name in sorted(mine.keys() - {"layout", "source"}):
        if mine[name] != other[name]:
            yield f"{CONFIG_NAME}: {name} is {mine[name]}, theirs {other[name]}"


def config_remarks(ours: Path, theirs: Path) -> list[str]:
    """Keys that only one of them has, or that only steer the builder."""
    mine, other = _flat(read_config(ours)), _flat(read_config(theirs))
    remarks = []
    if only := sorted(name for name in mine.keys() - other.keys() if not name.startswith("mixtral.")):
        remarks.append(f"{CONFIG_NAME}: only ours has {', '.join(only)}")
    if only := sorted(other.keys() - mine.keys()):
        remarks.append(f"{CONFIG_NAME}: only theirs has {', '.join(only)}")
    remarks += [
        f"{CONFIG_NAME}: {name} is {mine[name]}, theirs {other[name]}"
        for name in sorted(mine.keys() & other.keys())
        if mine[name] != other[name]
    ]
    return remarks


def _values(mine: Tensor, other: Tensor) -> str:
    """Where two tensors of one form differ; int8 as numbers, everything else by value too."""
    a, b = mine.flatten().float(), other.flatten().float()
    different = (a != b) & ~(a.isnan() & b.isnan())
    if not different.any():
        return "the same values in other bits (signs of zeros, NaNs)"
    first = int(different.nonzero()[0])
    return (
        f"{int(different.sum())} of {a.numel()} values differ, the first at {first}: {a[first]:g}, theirs {b[first]:g}"
    )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
