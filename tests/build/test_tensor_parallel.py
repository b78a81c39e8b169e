"""One file per rank with TensorRT-LLM's splits: put together again they are the checkpoint of one GPU."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.engine import build_pytorch_engine
from mixtral_build.limits import LimitOverrides
from mixtral_build.quantize import quantize_model
from mixtral_build.rank_tensors import quantize_for_ranks
from mixtral_build.verify import verify_directory
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import CheckpointError, MixtralError
from mixtral_runtime.formats import get_format
from mixtral_runtime.formats.int8 import quantize_rows
from mixtral_runtime.formats.int8_layout import from_kernel_layout
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tensor_names import weights

HEADS, KV_HEADS, HEAD_SIZE, INNER, EXPERTS = 4, 2, 64, 256, 4  # of the model fixture
LAYER = "transformer.layers.1."
CALIBRATION = CalibrationOptions(samples=4, tokens=16)
Make = Callable[..., Checkpoint]


@pytest.fixture(scope="session")
def make(grouped_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, int, str | None], Checkpoint] = {}

    def quantized(precision: str, tp_size: int, layout: str | None = None) -> Checkpoint:
        key = (precision, tp_size, layout)
        if key not in made:
            target = tmp_path_factory.mktemp("made") / "checkpoint"
            quantize_model(grouped_model, target, precision, layout=layout, tp_size=tp_size, calibration=CALIBRATION)
            made[key] = Checkpoint.open(target)
        return made[key]

    return quantized


def joined(name: str, ranks: list[Tensor]) -> Tensor:
    """The ranks' shares [..., out, in] put together as an implementation of the layers would: query heads, key heads
    and value heads of all ranks in a row, up projections before gates, row-parallel weights side by side."""
    if name.endswith("attention.qkv"):
        queries, keys = HEADS * HEAD_SIZE // len(ranks), KV_HEADS * HEAD_SIZE // len(ranks)
        parts = [torch.split(rank, [queries, keys, keys]) for rank in ranks]
        return torch.cat([torch.cat([part[which] for part in parts]) for which in range(3)])
    if name.endswith("mlp.fc"):
        halves = [rank.chunk(2, dim=1) for rank in ranks]  # [experts, inner / ranks, hidden]
        return torch.cat([torch.cat([half[which] for half in halves], dim=1) for which in range(2)], dim=1)
    if name == "lm_head":
        return torch.cat(ranks)
    if name.endswith(("attention.dense", "mlp.proj")):
        return torch.cat(ranks, dim=-1)
    assert all(torch.equal(rank, ranks[0]) for rank in ranks), name
    return ranks[0]


def dequantized(checkpoint: Checkpoint, name: str, rank: int) -> Tensor:
    """[out, in] or [experts, out, in] in float32, by the format's multiply half."""
    weight_format = get_format(checkpoint.config.quantization.quant_algo)
    stem = f"{name}."
    tensors = {
        full.removeprefix(stem): checkpoint.tensor(full, rank) for full in checkpoint.names() if full.startswith(stem)
    }
    if tensors["weight"].ndim == 2:
        return weight_format.linear(tensors, torch.float32).dequantize(torch.float32)
    experts = [
        {key: tensor[expert] if tensor.shape[0] == EXPERTS else tensor for key, tensor in tensors.items()}
        for expert in range(EXPERTS)
    ]
    return torch.stack([weight_format.linear(one, torch.float32).dequantize(torch.float32) for one in experts])


@pytest.mark.parametrize("tp_size", [1, 2])
def test_sixteen_bit_files_reassemble_to_the_whole(make: Make, tp_size: int) -> None:
    whole, split = make("16bit", 1), make("16bit", tp_size)
    split.validate()
    assert len(list(split.directory.glob("rank*.safetensors"))) == tp_size
    for name in whole.names():
        ranks = [split.tensor(name, rank) for rank in range(tp_size)]
        assert torch.equal(joined(name.removesuffix(".weight"), ranks), whole.tensor(name)), name


def test_shapes_are_those_that_tensorrt_llm_loads(make: Make) -> None:
    split = make("int8", 2)
    shapes = {name: split.spec(name).shape for name in split.names() if ".layers.0." not in name}
    assert shapes == {
        "transformer.vocab_embedding.weight": (96, 256),
        "lm_head.weight": (48, 256),
        "transformer.ln_f.weight": (256,),
        f"{LAYER}input_layernorm.weight": (256,),
        f"{LAYER}post_layernorm.weight": (256,),
        f"{LAYER}mlp.router.weight": (4, 256),
        f"{LAYER}attention.qkv.weight": (256, 256),
        f"{LAYER}attention.qkv.per_channel_scale": (256,),
        f"{LAYER}attention.dense.weight": (256, 128),
        f"{LAYER}attention.dense.per_channel_scale": (256,),
        f"{LAYER}mlp.fc.weight": (4, 256, 256),
        f"{LAYER}mlp.fc.per_channel_scale": (4, 256),
        f"{LAYER}mlp.proj.weight": (4, 256, 128),
        f"{LAYER}mlp.proj.per_channel_scale": (4, 256),
    }


def test_the_config_names_the_ranks(make: Make) -> None:
    data = json.loads((make("int8", 2).directory / "config.json").read_text())
    mapping = data["mapping"]
    assert {key: mapping[key] for key in ("world_size", "tp_size", "pp_size", "moe_tp_size", "moe_ep_size")} == {
        "world_size": 2,
        "tp_size": 2,
        "pp_size": 1,
        "moe_tp_size": 2,
        "moe_ep_size": 1,
    }
    assert data["use_parallel_embedding"] is False


@pytest.mark.parametrize("layout", ["plain", "sm80", "sm90"])
@pytest.mark.parametrize("name", ["attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"])
def test_int8_is_split_first_and_then_quantised(make: Make, layout: str, name: str) -> None:
    dense, int8 = make("16bit", 2), make("int8", 2, layout)
    int8.validate()
    for rank in range(2):
        values, scales = quantize_rows(dense.tensor(f"{LAYER}{name}.weight", rank))
        stored = int8.tensor(f"{LAYER}{name}.weight", rank)
        assert torch.equal(stored if layout == "plain" else from_kernel_layout(stored, layout), values)
        assert torch.equal(int8.tensor(f"{LAYER}{name}.per_channel_scale", rank), scales)


@pytest.mark.parametrize("precision", ["int8", "fp8", "awq"])
@pytest.mark.parametrize("name", ["attention.qkv", "attention.dense", "mlp.fc", "mlp.proj"])
def test_quantised_ranks_reassemble(make: Make, precision: str, name: str) -> None:
    """Exactly, but for int8 weights that are divided along the input: there each rank has scales of its own."""
    whole, split = make(precision, 1), make(precision, 2)
    split.validate()
    expected = dequantized(whole, f"{LAYER}{name}", 0)
    found = joined(name, [dequantized(split, f"{LAYER}{name}", rank) for rank in range(2)])
    if precision == "int8" and name in ("attention.dense", "mlp.proj"):
        original = make("16bit", 1).tensor(f"{LAYER}{name}.weight").float()
        assert (found - original).square().mean() <= (expected - original).square().mean()
    else:
        assert torch.equal(found, expected)


def test_a_vocabulary_that_the_ranks_do_not_divide_is_padded(grouped_model: Path) -> None:
    data = json.loads((grouped_model / "config.json").read_text()) | {"vocab_size": 97}
    config = CheckpointConfig.from_hf(data)
    (lm_head,) = (weight for weight in weights(config) if weight.name == "lm_head.weight")
    weight = torch.randn(97, 256)
    shares = [tensors["lm_head.weight"] for _, tensors in quantize_for_ranks(lm_head, [weight], get_format("16bit"), 2)]
    assert [share.shape[0] for share in shares] == [49, 49]
    assert torch.equal(torch.cat(shares)[:97], weight)
    assert not torch.cat(shares)[97:].any()


@pytest.mark.parametrize(
    ("tp_size", "name"), [(3, "num_attention_heads, which is 4"), (4, "num_key_value_heads, which is 2")]
)
def test_heads_that_the_ranks_do_not_divide(grouped_model: Path, tmp_path: Path, tp_size: int, name: str) -> None:
    with pytest.raises(MixtralError, match=f"tp_size is {tp_size}, it must divide {name}"):
        quantize_model(grouped_model, tmp_path / "out", "int8", tp_size=tp_size)
    assert list(tmp_path.iterdir()) == []


def test_shares_that_a_kernel_layout_cannot_take(model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text()) | {"intermediate_size": 64}
    (model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(MixtralError, match=r"mlp\.proj\.weight has 32 input features, the sm80"):
        quantize_model(model_dir, tmp_path / "out", "int8", layout="sm80", tp_size=2)


def test_the_pytorch_runtime_refuses_ranks(make: Make, tmp_path: Path) -> None:
    checkpoint = make("16bit", 2)
    with pytest.raises(CheckpointError, match="is split for 2 GPUs, the PyTorch runtime uses one"):
        MixtralModel.load(checkpoint, "cpu", torch.float32)
    with pytest.raises(MixtralError, match="is split for 2 GPUs, the PyTorch runtime uses one"):
        build_pytorch_engine(
            checkpoint.directory, tmp_path / "engine", device=find_device("cpu"), limits=LimitOverrides()
        )
    assert list(tmp_path.iterdir()) == []


def test_verify_reads_every_rank(grouped_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    quantize_model(grouped_model, target, "int8", tp_size=2)
    one = len(Checkpoint.open(target).names())
    assert verify_directory(target).tensors == 2 * one
    (target / "rank1.safetensors").rename(tmp_path / "rank1.safetensors")
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors does not exist"):
        verify_directory(target)
