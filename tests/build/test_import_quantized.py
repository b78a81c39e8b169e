"""Models that AutoAWQ, compressed-tensors or AutoFP8 quantised: made here from their description, then imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from mixtral_build.engine import build_pytorch_engine
from mixtral_build.limits import LimitOverrides
from mixtral_build.quantize import quantize_model
from mixtral_build.trtllm_command import check_combination
from mixtral_build.verify import verify_directory
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.devices import find_device
from mixtral_runtime.errors import InvalidArgument, MixtralError
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.weights import WeightLoader

HIDDEN, INNER, EXPERTS, LAYERS = 128, 256, 4, 2
SHARED = (("q_proj", "k_proj", "v_proj"), ("w1", "w3"))  # one weight of the checkpoint
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
E4M3_STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": E4M3_STATIC, "input_activations": E4M3_STATIC}},
    "ignore": ["lm_head", "re:.*block_sparse_moe.gate"],
}
AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        rope_theta=1e6,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    MixtralForCausalLM(config).half().save_pretrained(directory)
    return directory


def is_linear(name: str) -> bool:
    return name.endswith("weight") and ("_proj" in name or ".experts." in name)


def save_model(directory: Path, config_of: Path, tensors: dict[str, Tensor], scheme: dict[str, Any] | None) -> Path:
    directory.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    config = json.loads((config_of / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | ({"quantization_config": scheme} if scheme else {})))
    (directory / "tokenizer.json").write_text("{}")  # copied along, never read here
    return directory


def pack_columns(values: Tensor) -> Tensor:
    """AutoAWQ's `WQLinear_GEMM.from_linear`: column 8c + order[i] goes to nibble i of word c."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for nibble, column in enumerate(order):
            words[:, word] |= values[:, 8 * word + column].long() << (4 * nibble)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def auto_awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """AutoAWQ's tensors for a matrix [out, in], and the matrix that they stand for, in float32."""
    groups = weight.float().view(len(weight), -1, 128)
    high, low = groups.amax(-1), groups.amin(-1)
    scales = ((high - low).clamp(min=1e-5) / 15).half()
    zeros = (-(low / scales).round()).clamp(0, 15)
    values = ((groups / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, 15)
    stands_for = (values - zeros[..., None]) * scales.float()[..., None]
    tensors = {
        "qweight": pack_columns(values.view(weight.shape).T),
        "qzeros": pack_columns(zeros.T),
        "scales": scales.T,
    }
    return tensors, stands_for.view(weight.shape)


@pytest.fixture(scope="module")
def awq_model(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_auto_awq(original, tmp_path_factory.mktemp("awq"))


def save_auto_awq(original: Path, directory: Path) -> Path:
    """`directory`/quantised, and the model with the same weights in float32 in `directory`/dequantised."""
    quantised, dequantised = {}, {}
    for name, tensor in load_file(original / "model.safetensors").items():
        if not is_linear(name):
            quantised[name] = dequantised[name] = tensor
            continue
        tensors, dequantised[name] = auto_awq(tensor)
        quantised |= {name.removesuffix("weight") + suffix: part for suffix, part in tensors.items()}
    save_model(directory / "dequantised", original, dequantised, None)
    return save_model(directory / "quantised", original, quantised, AWQ)


@pytest.fixture(scope="module")
def imported_awq(awq_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("imported") / "checkpoint"
    quantize_model(awq_model, target, "awq")
    return target


def test_auto_awq_becomes_4_bit_with_zero_points(imported_awq: Path) -> None:
    verify_directory(imported_awq)
    quantization = json.loads((imported_awq / "config.json").read_text())["quantization"]
    expected = {"quant_algo": "W4A16_GPTQ", "group_size": 128, "has_zero_point": True, "pre_quant_scale": False}
    assert {key: quantization[key] for key in expected} == expected


def test_every_auto_awq_weight_is_met_exactly(awq_model: Path, imported_awq: Path) -> None:
    source = load_file(awq_model.parent / "dequantised" / "model.safetensors")
    weights = WeightLoader(Checkpoint.open(imported_awq), torch.device("cpu"), torch.float32)
    for layer in range(LAYERS):
        ours, theirs = f"transformer.layers.{layer}.", f"model.layers.{layer}."
        attention, experts = f"{theirs}self_attn.", f"{theirs}block_sparse_moe.experts."
        qkv = torch.cat([source[f"{attention}{which}_proj.weight"] for which in "qkv"])
        assert torch.equal(weights.linear(f"{ours}attention.qkv").dequantize(torch.float32), qkv)
        dense = weights.linear(f"{ours}attention.dense").dequantize(torch.float32)
        assert torch.equal(dense, source[f"{attention}o_proj.weight"])
        mixture = weights.experts(f"{ours}mlp")
        for expert in range(EXPERTS):
            up_gate = torch.cat([source[f"{experts}{expert}.{which}.weight"] for which in ("w3", "w1")])
            assert torch.equal(mixture.fc[expert].dequantize(torch.float32), up_gate)
            down = source[f"{experts}{expert}.w2.weight"]
            assert torch.equal(mixture.proj[expert].dequantize(torch.float32), down)


def test_an_imported_auto_awq_model_computes_what_transformers_does(awq_model: Path, imported_awq: Path) -> None:
    prompt = [1, 17, 5, 90, 33, 2, 77, 14, 8, 8, 61, 4]
    reference = MixtralForCausalLM.from_pretrained(awq_model.parent / "dequantised", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    found = MixtralModel.load(Checkpoint.open(imported_awq), "cpu", torch.float32).forward_logits(prompt)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_engine_of_an_imported_model_can_be_built(imported_awq: Path, tmp_path: Path) -> None:
    build_pytorch_engine(imported_awq, tmp_path / "engine", device=find_device("cpu"), limits=LimitOverrides())
    assert verify_directory(tmp_path / "engine").precision == "awq"


def test_an_imported_model_can_be_split_among_ranks(awq_model: Path, imported_awq: Path, tmp_path: Path) -> None:
    quantize_model(awq_model, tmp_path / "split", "awq", tp_size=2)
    verify_directory(tmp_path / "split")
    whole, split = Checkpoint.open(imported_awq), Checkpoint.open(tmp_path / "split")
    for suffix in ("weight", "weights_scaling_factor", "zero"):
        for part, axis in (("attention.dense", 1), ("mlp.proj", 2)):  # divided along their inputs
            name = f"transformer.layers.1.{part}.{suffix}"
            assert torch.equal(torch.cat([split.tensor(name, rank) for rank in range(2)], dim=axis), whole.tensor(name))
        name = f"transformer.layers.1.mlp.fc.{suffix}"
        parts = [split.tensor(name, rank).chunk(2, dim=1) for rank in range(2)]
        up, gate = (torch.cat(shares, dim=1) for shares in zip(*parts, strict=True))
        assert torch.equal(torch.cat([up, gate], dim=1), whole.tensor(name))


def test_tensorrt_llm_is_refused_what_is_stored_for_the_pytorch_runtime(imported_awq: Path) -> None:
    config = Checkpoint.open(imported_awq).config
    with pytest.raises(InvalidArgument, match=r"W4A16_GPTQ weights .* use --runtime pytorch"):
        check_combination(config, find_device("a100"))


def test_other_activations_keep_the_weights(awq_model: Path, imported_awq: Path, tmp_path: Path) -> None:
    """In bfloat16 only the scales are rounded: the zero points remain whole numbers."""
    quantize_model(awq_model, tmp_path / "c", "awq", dtype="bfloat16")
    loaders = [
        WeightLoader(Checkpoint.open(p), torch.device("cpu"), torch.float32) for p in (imported_awq, tmp_path / "c")
    ]
    half, brain = (loader.linear("transformer.layers.0.attention.qkv") for loader in loaders)
    exact = half.dequantize(torch.float32)
    assert ((brain.dequantize(torch.float32) - exact).abs() <= exact.abs() * 2.0**-8).all()


def fp8_scale(name: str) -> float:
    """Another one for each matrix, far enough apart to be told from each other."""
    return 0.001 * (1 + sum(map(ord, name)) % 7)


def fp8_tensors(original: Path, shape: tuple[int, ...]) -> dict[str, Tensor]:
    quantised = {}
    for name, tensor in load_file(original / "model.safetensors").items():
        if not is_linear(name):
            quantised[name] = tensor
            continue
        stem, scale = name.removesuffix("weight"), fp8_scale(name)
        quantised[name] = (tensor.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        quantised[f"{stem}weight_scale"] = torch.full(shape, scale)
        quantised[f"{stem}input_scale"] = torch.full(shape, 10 * fp8_scale(name))
    return quantised


@pytest.mark.parametrize(
    ("scheme", "shape"), [(COMPRESSED, (1,)), (COMPRESSED, ()), (AUTO_FP8, ())], ids=["[1]", "[]", "AutoFP8"]
)
def test_fp8_weights_and_scales_are_taken_over(
    original: Path, tmp_path: Path, scheme: dict[str, Any], shape: tuple[int, ...]
) -> None:
    source = fp8_tensors(original, shape)
    quantize_model(save_model(tmp_path / "model", original, source, scheme), tmp_path / "c", "fp8")
    verify_directory(tmp_path / "c")
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert checkpoint.config.quantization.quant_algo == "FP8"
    moe = "model.layers.1.block_sparse_moe.experts."
    layer = "transformer.layers.1."
    for expert in range(EXPERTS):
        names = [f"{moe}{expert}.{which}.weight" for which in ("w3", "w1")]
        scale = torch.tensor(max(map(fp8_scale, names)))
        assert torch.equal(checkpoint.tensor(f"{layer}mlp.fc.weights_scaling_factor")[expert], scale[None])
        exact = torch.cat([source[name].float() * torch.tensor(fp8_scale(name)) for name in names])
        found = checkpoint.tensor(f"{layer}mlp.fc.weight")[expert]
        assert torch.equal(found.float(), (exact / scale).to(torch.float8_e4m3fn).float())
        down = f"{moe}{expert}.w2.weight"
        assert torch.equal(checkpoint.tensor(f"{layer}mlp.proj.weight")[expert].float(), source[down].float())
    for part, which in (("mlp.fc", ("w1", "w3")), ("mlp.proj", ("w2",))):
        inputs = [10 * fp8_scale(f"{moe}{expert}.{name}.weight") for expert in range(EXPERTS) for name in which]
        factor = checkpoint.tensor(f"{layer}{part}.activation_scaling_factor")
        assert torch.equal(factor, torch.tensor([max(inputs)]))
    assert checkpoint.tensor("transformer.layers.0.attention.qkv.weights_scaling_factor").shape == (1,)


def test_the_scale_of_an_fp8_kv_cache_is_the_models_own_and_at_least_1(original: Path, tmp_path: Path) -> None:
    source = fp8_tensors(original, (1,))
    source |= {
        "model.layers.1.self_attn.k_scale": torch.tensor(0.5),
        "model.layers.1.self_attn.v_scale": torch.tensor(2.0),
    }
    quantize_model(save_model(tmp_path / "model", original, source, COMPRESSED), tmp_path / "c", "fp8", kv_cache="fp8")
    checkpoint = Checkpoint.open(tmp_path / "c")
    scales = [checkpoint.tensor(f"transformer.layers.{i}.attention.kv_cache_scaling_factor").item() for i in range(2)]
    assert scales == [1.0, 2.0]
    assert checkpoint.tensor("transformer.layers.1.attention.kv_cache_rcp_scaling_factor").item() == 0.5


def complaint(model_dir: Path, precision: str) -> str:
    target = model_dir.parent / "out"
    with pytest.raises(MixtralError) as caught:
        quantize_model(model_dir, target, precision)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize("precision", ["16bit", "int8", "fp8"])
def test_another_precision_than_the_models_is_refused_naming_both(awq_model: Path, precision: str) -> None:
    assert complaint(awq_model, precision) == (
        f"precision is {precision}, but {awq_model} is quantised to awq already; use --precision awq"
    )


@pytest.mark.parametrize(
    ("scheme", "precision", "sentence"),
    [
        ({"quant_method": "gptq"}, "awq", "quant_method is gptq, only awq, compressed-tensors and fp8 can be imported"),
        (AWQ | {"group_size": 64}, "awq", "quantization_config.group_size is 64, only 128 is supported"),
        (AWQ | {"bits": 8}, "awq", "quantization_config.bits is 8, only 4"),
        (AWQ | {"zero_point": False}, "awq", "quantization_config.zero_point is False, only True"),
        (AWQ | {"version": "gemv"}, "awq", "quantization_config.version is gemv, only gemm"),
        (COMPRESSED | {"format": "pack-quantized"}, "fp8", "format is pack-quantized, only float-quantized"),
        (
            COMPRESSED | {"config_groups": {"g": {"weights": E4M3_STATIC | {"strategy": "channel"}}}},
            "fp8",
            "config_groups.g.weights.strategy is channel, only tensor is supported",
        ),
        (
            COMPRESSED | {"config_groups": {"g": {"weights": E4M3_STATIC, "input_activations": {"dynamic": True}}}},
            "fp8",
            "config_groups.g.input_activations.num_bits is None, only 8",
        ),
        (AUTO_FP8 | {"activation_scheme": "dynamic"}, "fp8", "activation_scheme is dynamic, only static"),
    ],
)
def test_a_scheme_that_cannot_be_imported_is_refused_by_field_and_value(
    original: Path, tmp_path: Path, scheme: dict[str, Any], precision: str, sentence: str
) -> None:
    model = save_model(tmp_path / "model", original, load_file(original / "model.safetensors"), scheme)
    assert sentence in complaint(model, precision)


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def replace(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.__setitem__(name, tensor)


Q_PROJ = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop(f"{Q_PROJ}qzeros"), f"has no tensor {Q_PROJ}qzeros"),
        (replace(f"{Q_PROJ}qweight", torch.zeros(8, 8, dtype=torch.int32)), "q_proj.qweight has shape [8, 8]"),
        (replace(f"{Q_PROJ}qweight", torch.zeros(128, 32)), "q_proj.qweight has dtype torch.float32"),
        (replace(f"{Q_PROJ}scales", torch.full((1, 256), float("inf"))), "q_proj.scales has values that are infinite"),
    ],
)
def test_a_wrong_tensor_is_named(
    original: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    model = save_auto_awq(original, tmp_path)
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")
    assert sentence in complaint(model, "awq")


def test_an_fp8_scale_that_is_none_is_named(original: Path, tmp_path: Path) -> None:
    source = fp8_tensors(original, (1,)) | {f"{Q_PROJ}weight_scale": torch.tensor([0.0])}
    model = save_model(tmp_path / "model", original, source, COMPRESSED)
    assert f"{Q_PROJ}weight_scale is 0.0, it must be a number above 0" in complaint(model, "fp8")
    source |= {f"{Q_PROJ}weight_scale": torch.ones(128, 1)}
    model = save_model(tmp_path / "channels", original, source, COMPRESSED)
    assert f"{Q_PROJ}weight_scale has shape [128, 1], it must have one element" in complaint(model, "fp8")
