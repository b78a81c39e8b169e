"""FP8 calibration: what the model reads, the largest activations found, and the scales made of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from mixtral_build.calibrate import Calibration, calibrate
from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.calibration_data import DEFAULT_DATA, calibration_samples
from mixtral_build.cli import run
from mixtral_build.layer_source import HfLayerSource
from mixtral_build.layerwise import Samples, run_layers
from mixtral_build.quantize import quantize_model
from mixtral_build.texts import read_texts
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.formats.fp8 import EXCLUDED_MODULES
from mixtral_runtime.tokenizer import load_tokenizer

SAMPLES = Samples([[1, 17, 5, 90, 33, 2, 77], [4, 8, 15], [9, 9, 60, 61, 62, 63, 64, 8, 7, 6, 5]])
EXPERTS = 4
BRIEF = CalibrationOptions(samples=12)


@pytest.fixture(scope="module")
def readable_model(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """A small random model with the demo model's tokenizer; its expert 2 of layer 1 is never chosen."""
    directory = tmp_path_factory.mktemp("readable")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=1536,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = MixtralForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.zero_()  # its inputs are zero, so all logits are equal
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def quantised(readable_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "checkpoint"
    quantize_model(readable_model, target, "fp8", calibration=BRIEF)
    return target


def test_the_largest_activations_are_those_of_transformers(saved_model: Path) -> None:
    model = MixtralForCausalLM.from_pretrained(saved_model, dtype=torch.float32).eval()
    found = calibrate(HfLayerSource(saved_model), SAMPLES)
    expected = torch.zeros(2, 3)  # inputs of qkv and dense, and keys and values

    def raise_to(layer: int, column: int, x: torch.Tensor) -> None:
        expected[layer, column] = max(expected[layer, column].item(), x.abs().max().item())

    for index, layer in enumerate(model.model.layers):
        for column, linear in enumerate((layer.self_attn.q_proj, layer.self_attn.o_proj)):
            linear.register_forward_pre_hook(
                lambda _, inputs, index=index, column=column: raise_to(index, column, inputs[0])
            )
    with torch.inference_mode():
        for ids in SAMPLES.token_ids:
            cache = model(torch.tensor([list(ids)]), use_cache=True).past_key_values
            for index, layer in enumerate(cache.layers):
                raise_to(index, 2, layer.keys)
                raise_to(index, 2, layer.values)
    torch.testing.assert_close(found.linear_amax[:, :2], expected[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.kv_amax, expected[:, 2], rtol=1e-5, atol=1e-5)
    assert found.expert_tokens.sum(dim=1).tolist() == [2 * SAMPLES.tokens] * 2


def test_the_experts_share_the_largest_of_their_inputs(saved_model: Path) -> None:
    """Each expert's own maximum, found with a router that sends every token everywhere."""
    amax: dict[tuple[int, str], float] = {}

    def observe(layer: int, name: str, x: torch.Tensor, expert: int | None = None) -> None:
        amax[layer, name] = max(amax.get((layer, name), 0.0), x.abs().max().item())

    run_layers(HfLayerSource(saved_model), SAMPLES, observe=observe)
    found = calibrate(HfLayerSource(saved_model), SAMPLES)
    for layer in range(2):
        assert found.linear_amax[layer, 2:].tolist() == [amax[layer, "mlp.fc"], amax[layer, "mlp.proj"]]


def test_experts_without_tokens_are_named_and_take_the_scale_of_the_others(
    readable_model: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    summary = quantize_model(readable_model, tmp_path / "checkpoint", "fp8", calibration=BRIEF, notify=said.append)
    assert summary.calibration is not None
    # All of layer 1's router logits are equal, and the first two experts win ties.
    assert summary.calibration["unseen_experts"] == ["layer 1 expert 2", "layer 1 expert 3"]
    assert any("2 experts" in sentence and "layer 1 expert 3" in sentence for sentence in said)
    scale = Checkpoint.open(tmp_path / "checkpoint").tensor("transformer.layers.1.mlp.proj.activation_scaling_factor")
    assert scale.shape == (1,)


def test_scales_are_amax_over_448_and_those_of_the_cache_at_least_one() -> None:
    calibration = Calibration(
        torch.tensor([[448.0, 44.8, 0.0, 896.0]]), torch.tensor([100.0]), torch.ones(1, EXPERTS, dtype=torch.int64)
    )
    scales = {name.split(".", 3)[3]: scale.item() for name, scale in calibration.activation_scales().items()}
    assert scales == {
        "attention.qkv.weight": 1.0,
        "attention.dense.weight": pytest.approx(0.1),
        "mlp.fc.weight": 1.0,  # nothing but zeros
        "mlp.proj.weight": 2.0,
    }
    assert [scale.item() for scale in calibration.kv_scales().values()] == [1.0, 1.0]
    large = Calibration(calibration.linear_amax, torch.tensor([896.0]), calibration.expert_tokens)
    assert [scale.item() for scale in large.kv_scales().values()] == [2.0, 0.5]


def test_the_checkpoint_has_the_tensors_of_tensorrt_llm(quantised: Path) -> None:
    tensors = load_file(quantised / "rank0.safetensors")
    found = {
        name.removeprefix("transformer.layers.1."): (tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
        if name.startswith("transformer.layers.1.")
    }
    e4m3, f32, bf16 = torch.float8_e4m3fn, torch.float32, torch.bfloat16
    assert found == {
        "input_layernorm.weight": ((64,), bf16),
        "attention.qkv.weight": ((256, 64), e4m3),
        "attention.qkv.weights_scaling_factor": ((1,), f32),
        "attention.qkv.activation_scaling_factor": ((1,), f32),
        "attention.kv_cache_scaling_factor": ((1,), f32),
        "attention.kv_cache_rcp_scaling_factor": ((1,), f32),
        "attention.dense.weight": ((64, 128), e4m3),
        "attention.dense.weights_scaling_factor": ((1,), f32),
        "attention.dense.activation_scaling_factor": ((1,), f32),
        "post_layernorm.weight": ((64,), bf16),
        "mlp.router.weight": ((EXPERTS, 64), f32),
        "mlp.fc.weight": ((EXPERTS, 256, 64), e4m3),
        "mlp.fc.weights_scaling_factor": ((EXPERTS, 1), f32),
        "mlp.fc.activation_scaling_factor": ((1,), f32),
        "mlp.proj.weight": ((EXPERTS, 64, 128), e4m3),
        "mlp.proj.weights_scaling_factor": ((EXPERTS, 1), f32),
        "mlp.proj.activation_scaling_factor": ((1,), f32),
    }
    assert tensors["lm_head.weight"].dtype == bf16


def test_the_config_says_what_is_quantised(quantised: Path) -> None:
    quantization = json.loads((quantised / "config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == "FP8"
    assert quantization["kv_cache_quant_algo"] == "FP8"
    assert quantization["exclude_modules"] == list(EXCLUDED_MODULES)


def test_concatenated_weights_share_the_largest_scale(readable_model: Path, quantised: Path) -> None:
    source, made = load_file(readable_model / "model.safetensors"), Checkpoint.open(quantised)
    layer, moe = "model.layers.0.", "model.layers.0.block_sparse_moe.experts."
    expected = max(source[f"{layer}self_attn.{part}_proj.weight"].abs().max() for part in "qkv").float() / 448
    assert made.tensor("transformer.layers.0.attention.qkv.weights_scaling_factor") == expected
    for expert in range(EXPERTS):
        largest = max(source[f"{moe}{expert}.{part}.weight"].abs().max() for part in ("w1", "w3")).float()
        assert made.tensor("transformer.layers.0.mlp.fc.weights_scaling_factor")[expert] == largest / 448


def test_a_16_bit_cache_has_no_scales(readable_model: Path, tmp_path: Path) -> None:
    summary = quantize_model(readable_model, tmp_path / "checkpoint", "fp8", kv_cache="16bit", calibration=BRIEF)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    checkpoint.validate()
    assert summary.kv_cache == "bfloat16"
    assert checkpoint.config.quantization.kv_cache_quant_algo is None
    assert not [name for name in checkpoint.names() if "kv_cache" in name]


def test_other_precisions_can_have_an_fp8_cache(readable_model: Path, tmp_path: Path) -> None:
    summary = quantize_model(readable_model, tmp_path / "checkpoint", "int8", kv_cache="fp8", calibration=BRIEF)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    checkpoint.validate()
    assert summary.kv_cache == "fp8"
    assert checkpoint.tensor("transformer.layers.0.attention.kv_cache_scaling_factor") >= 1


def test_a_checkpoint_without_reciprocal_scales_is_complete(quantised: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(quantised, tmp_path / "copy"))
    tensors = load_file(copy / "rank0.safetensors")
    save_file({name: t for name, t in tensors.items() if "_rcp_" not in name}, copy / "rank0.safetensors")
    Checkpoint.open(copy).validate()


@pytest.mark.parametrize("precision", ["16bit", "int8", "fp8"])
def test_the_routing_width_can_be_chosen(readable_model: Path, tmp_path: Path, precision: str) -> None:
    summary = quantize_model(readable_model, tmp_path / "checkpoint", precision, experts_per_token=3, calibration=BRIEF)
    assert summary.experts_per_token == 3
    assert Checkpoint.open(tmp_path / "checkpoint").config.moe.top_k == 3


@pytest.mark.parametrize("width", [0, 5])
def test_a_routing_width_that_there_are_no_experts_for_is_refused(
    readable_model: Path, tmp_path: Path, width: int
) -> None:
    with pytest.raises(InvalidArgument, match=f"experts_per_token is {width}, it must be from 1 to 4"):
        quantize_model(readable_model, tmp_path / "checkpoint", "16bit", experts_per_token=width)


def test_all_the_samples_that_ship_are_read(demo_model: Path) -> None:
    texts = list(read_texts(DEFAULT_DATA))
    assert len(texts) == len(set(texts)) == 150
    samples = calibration_samples(load_tokenizer(demo_model), None, samples=512, tokens=512)
    assert len(samples) >= 150
    assert samples.tokens > 10_000


def test_a_text_is_cut_into_windows(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The gulls argue over a crust. " * 50)
    tokenizer = load_tokenizer(demo_model)
    whole = calibration_samples(tokenizer, tmp_path / "a.txt", samples=1, tokens=10**6).token_ids[0]
    cut = calibration_samples(tokenizer, tmp_path / "a.txt", samples=3, tokens=16).token_ids
    assert [list(ids) for ids in cut] == [list(whole[:16]), list(whole[16:32]), list(whole[32:48])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r'a.jsonl line 2 is not a JSON object with a "text"'),
        ("a.txt", b"  \n", "a.txt has no text"),
        ("b.txt", None, "b.txt does not exist"),
    ],
)
def test_data_that_cannot_be_read_is_named(
    demo_model: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=message):
        calibration_samples(load_tokenizer(demo_model), tmp_path / name, samples=4, tokens=16)


def test_the_command_takes_the_options(
    readable_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "The gulls argue over a crust."}\n' * 9)
    target, data = str(tmp_path / "checkpoint"), str(tmp_path / "a.jsonl")
    options = ["--precision", "fp8", "--kv-cache", "16bit", "--experts-per-token", "3", "--calib-data", data]
    more = ["--calib-samples", "5", "--calib-tokens", "4", "--json"]
    assert run(["quantize", str(readable_model), target, *options, *more]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["precision"], summary["kv_cache"], summary["experts_per_token"]) == ("fp8", "bfloat16", 3)
    assert summary["calibration"]["samples"] == 5
    assert 5 <= summary["calibration"]["tokens"] <= 5 * 4


def test_nothing_is_written_when_the_calibration_data_is_wrong(readable_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="does not exist"):
        quantize_model(
            readable_model, tmp_path / "checkpoint", "fp8", calibration=CalibrationOptions(tmp_path / "none.txt")
        )
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_readable_tokenizer_cannot_be_calibrated(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        quantize_model(saved_model, tmp_path / "checkpoint", "fp8")


def test_a_calibration_is_not_done_twice(
    readable_model: Path, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after calibrating, the next run takes the result over and ends with the same bytes."""

    def interrupt(done: int, total: int) -> None:
        if total > 10:  # parameters, not layers
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(readable_model, tmp_path / "checkpoint", "fp8", calibration=BRIEF, progress=interrupt)
    monkeypatch.delattr("mixtral_build.calibrated_format.calibrate")
    quantize_model(readable_model, tmp_path / "checkpoint", "fp8", calibration=BRIEF)
    made = tmp_path / "checkpoint" / "rank0.safetensors"
    assert made.read_bytes() == (quantised / "rank0.safetensors").read_bytes()
