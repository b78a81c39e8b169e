"""The activation-aware scale search: its arithmetic on random matrices, and what it gains on the demo model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixtral_build.awq_search import (
    ALPHAS,
    LARGEST_FACTOR,
    InputSample,
    ScaleSearch,
    choose_scale,
    output_error,
    prequant_scale,
    search_scales,
)
from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.calibration_data import calibration_samples
from mixtral_build.layer_source import HfLayerSource
from mixtral_build.layerwise import Samples, run_layers
from mixtral_build.quantize import QuantizeSummary, quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import get_format
from mixtral_runtime.formats.dense import DenseLinear
from mixtral_runtime.pytorch.model import Layer, MixtralModel
from mixtral_runtime.tokenizer import load_tokenizer

PARTS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.proj")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outlier_inputs(rows: int = 240, channels: int = 256) -> Tensor:
    """Ordinary activations but for some channels that are twenty times as large, as in a large language model."""
    x = random(rows, channels, seed=1)
    x[:, ::37] *= 20
    return x


def sample_of(x: Tensor) -> InputSample:
    sample = InputSample()
    sample.add(x)
    return sample


def straightforward_error(weight: Tensor, scale: Tensor, x: Tensor) -> float:
    """The definition: quantise what is multiplied, multiply, compare. Lin et al., equation 4."""
    groups = (weight / scale).view(len(weight), -1, 128)
    step = groups.abs().amax(-1, keepdim=True) / 7
    quantised = ((groups / step).round().clamp(-8, 7) * step).view_as(weight)
    return ((x * scale) @ quantised.T - x @ weight.T).square().mean().item()


def test_the_error_is_that_of_the_output() -> None:
    weight, x = random(32, 256) * 0.1, outlier_inputs()
    for alpha in (0.0, 0.3, 1.0):
        scale = prequant_scale(x.abs().mean(0), alpha, torch.float32)
        assert output_error(weight, scale, x) == pytest.approx(straightforward_error(weight, scale, x), rel=1e-3)


def test_the_best_alpha_of_the_grid_is_chosen() -> None:
    weight, x = random(32, 256) * 0.1, outlier_inputs()
    choice = choose_scale([DenseLinear(weight)], [sample_of(x)], torch.float32)
    mean = x.abs().mean(0)
    errors = [straightforward_error(weight, prequant_scale(mean, alpha, torch.float32), x) for alpha in ALPHAS]
    assert choice.alpha == ALPHAS[errors.index(min(errors))]
    assert choice.error == pytest.approx(min(errors), rel=1e-3)
    assert choice.rounding_error == pytest.approx(errors[0], rel=1e-3)
    torch.testing.assert_close(choice.prequant_scale, prequant_scale(mean, choice.alpha, torch.float32))


def test_channels_with_outliers_are_protected() -> None:
    x = outlier_inputs()
    choice = choose_scale([DenseLinear(random(64, 256) * 0.1)], [sample_of(x)], torch.bfloat16)
    assert choice.error < 0.8 * choice.rounding_error
    assert choice.prequant_scale[::37].max() < choice.prequant_scale[1:37].min()
    unseen = outlier_inputs(rows=480)[240:]
    weight = (random(64, 256) * 0.1).bfloat16()
    ones = torch.ones(256, dtype=torch.bfloat16)
    assert output_error(weight, choice.prequant_scale, unseen) < 0.8 * output_error(weight, ones, unseen)


def test_alpha_zero_is_plain_rounding() -> None:
    assert torch.equal(prequant_scale(random(128).abs(), 0.0, torch.float16), torch.ones(128, dtype=torch.float16))


def test_scales_stay_within_the_normal_numbers_of_float16() -> None:
    mean = torch.tensor([0.0, 1e-30, 1.0, 1e9])
    for alpha in ALPHAS:
        scale = prequant_scale(mean, alpha, torch.float16).float()
        assert scale.min() >= 1 / LARGEST_FACTOR
        assert scale.max() <= LARGEST_FACTOR


def test_a_sample_does_not_depend_on_how_the_inputs_are_cut() -> None:
    x = random(1000, 8)
    whole, parts = InputSample(kept_rows=50), InputSample(kept_rows=50)
    whole.add(x)
    for part in torch.split(x, 77):
        parts.add(part)
    assert whole.count == parts.count == 1000
    assert torch.equal(whole.rows, parts.rows)
    torch.testing.assert_close(whole.abs_sum, x.abs().sum(0, dtype=torch.float64))
    torch.testing.assert_close(whole.abs_sum, parts.abs_sum)
    assert len(whole.rows) == 50
    assert len(set(whole.rows[:, 0].tolist())) == 50


def test_a_sample_is_uniform() -> None:
    """Each row is its own number: the kept ones must come from all of the stream."""
    sample = InputSample(kept_rows=400)
    for part in torch.split(torch.arange(4000.0)[:, None], 100):
        sample.add(part)
    quarters = torch.histc(sample.rows, bins=4, min=0, max=4000)
    assert quarters.sum() == 400
    assert (quarters - 100).abs().max() < 35  # four standard deviations


def test_experts_count_as_often_as_they_are_used_and_unused_ones_not_at_all() -> None:
    weights = [DenseLinear(random(32, 256, seed=seed) * 0.1) for seed in range(3)]
    x = outlier_inputs()
    unused = InputSample()
    alone = choose_scale(weights[:1], [sample_of(x)], torch.float32)
    assert choose_scale(weights[:2], [sample_of(x), unused], torch.float32).alpha == alone.alpha
    both = choose_scale(weights[::2], [sample_of(x[:160]), sample_of(x[160:])], torch.float32)
    first = output_error(weights[0].weight, both.prequant_scale, x[:160])
    second = output_error(weights[2].weight, both.prequant_scale, x[160:])
    assert both.error == pytest.approx((2 * first + second) / 3, rel=1e-5)


@dataclass(frozen=True)
class Quantised:
    directory: Path
    summary: QuantizeSummary


@pytest.fixture(scope="module")
def calibration_file(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fourth text of the held-out set; the others measure."""
    path = tmp_path_factory.mktemp("calibration") / "texts.jsonl"
    path.write_text("".join((demo_model / "heldout.jsonl").read_text().splitlines(keepends=True)[1::4]))
    return path


@pytest.fixture(scope="module")
def awq(demo_model: Path, calibration_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    target = tmp_path_factory.mktemp("awq") / "checkpoint"
    options = CalibrationOptions(calibration_file, samples=48)
    return Quantised(target, quantize_model(demo_model, target, "awq", calibration=options))


def test_all_experts_of_a_layer_have_one_prequant_scale(awq: Quantised) -> None:
    checkpoint = Checkpoint.open(awq.directory)
    checkpoint.validate()
    scaled = 0
    for layer in range(4):
        for part in ("mlp.fc", "mlp.proj"):
            scales = checkpoint.tensor(f"transformer.layers.{layer}.{part}.prequant_scaling_factor")
            assert (scales == scales[:1]).all()
            scaled += bool((scales != 1).any())
    assert scaled >= 4  # the search found something to scale
    assert awq.summary.calibration is not None
    assert awq.summary.calibration["samples"] == 48
    assert awq.summary.calibration["unseen_experts"] == []
    assert awq.summary.calibration["error_ratio"] < 1


def test_the_config_says_what_tensorrt_llm_must_know(awq: Quantised) -> None:
    config = json.loads((awq.directory / "config.json").read_text())
    expected = {"quant_algo": "W4A16_AWQ", "group_size": 128, "pre_quant_scale": True, "has_zero_point": False}
    assert {key: config["quantization"][key] for key in expected} == expected


def test_output_errors_on_held_out_text_are_below_those_of_rounding(demo_model: Path, awq: Quantised) -> None:
    """Of each kind of matrix, summed over the layers, on activations that the search did not see."""
    checkpoint = Checkpoint.open(awq.directory)
    tokenizer = load_tokenizer(demo_model)
    held_out = calibration_samples(tokenizer, demo_model / "heldout.jsonl", samples=310, tokens=512).token_ids[::4]
    seen: dict[tuple[int, str, int], list[Tensor]] = {}
    errors = {part: torch.zeros(2, dtype=torch.float64) for part in PARTS}  # of awq and of rounding

    def observe(layer: int, name: str, x: Tensor, expert: int | None = None) -> None:
        if name in PARTS:
            seen.setdefault((layer, name, expert or 0), []).append(x.clone())

    def measure(index: int, layer: Layer, states: object) -> None:
        linears = {"attention.qkv": [layer.qkv], "attention.dense": [layer.dense]}
        linears |= {"mlp.fc": layer.experts.fc, "mlp.proj": layer.experts.proj}
        for (_, part, expert), chunks in seen.items():
            name = f"transformer.layers.{index}.{part}."
            stored = {
                suffix: checkpoint.tensor(name + suffix)[expert] if "mlp" in part else checkpoint.tensor(name + suffix)
                for suffix in ("weight", "weights_scaling_factor", "prequant_scaling_factor")
            }
            weight = linears[part][expert].dequantize(torch.bfloat16)
            rounded = {key.removeprefix("a."): t for key, t in get_format("awq").quantize("a.weight", weight).items()}
            for i, tensors in enumerate((stored, rounded)):
                matrix = get_format("awq").linear(tensors, torch.bfloat16).dequantize(torch.float32)
                errors[part][i] += (torch.cat(chunks) @ (matrix - weight.float()).T).double().square().sum()
        seen.clear()

    run_layers(HfLayerSource(demo_model), Samples(held_out), observe=observe, on_layer=measure)
    for part, (found, rounding) in errors.items():
        assert found < rounding, part


def test_the_search_can_be_stored_and_taken_up_again(demo_model: Path, calibration_file: Path) -> None:
    samples = calibration_samples(load_tokenizer(demo_model), calibration_file, samples=4, tokens=512)
    search = search_scales(HfLayerSource(demo_model), samples, torch.bfloat16)
    again = ScaleSearch.from_tensors(search.to_tensors())
    assert again.error_ratio() == search.error_ratio()
    assert list(again.choices) == list(search.choices)
    for name, scale in search.prequant_scales().items():
        assert torch.equal(again.prequant_scales()[name], scale)
    assert search.expert_tokens.sum() == 4 * 2 * samples.tokens  # layers, experts of each token


def test_a_vocabulary_is_filled_up_to_a_multiple_of_64_and_its_new_tokens_do_not_exist(
    demo_model: Path, calibration_file: Path, tmp_path: Path
) -> None:
    model_dir = Path(shutil.copytree(demo_model, tmp_path / "model"))
    set_vocabulary(model_dir, 1542)
    quantize_model(model_dir, tmp_path / "c", "awq", calibration=CalibrationOptions(calibration_file, samples=4))
    checkpoint = Checkpoint.open(tmp_path / "c")
    checkpoint.validate()
    for name in ("transformer.vocab_embedding.weight", "lm_head.weight"):
        rows = checkpoint.tensor(name)
        assert rows.shape == (1600, 256)
        assert rows[:1542].any(dim=1).all()
        assert not rows[1542:].any()
    assert json.loads((tmp_path / "c" / "config.json").read_text())["vocab_size"] == 1600
    assert checkpoint.config.vocab_size == 1542
    assert MixtralModel.load(checkpoint, "cpu").forward_logits([1, 2, 3]).shape == (3, 1542)


def set_vocabulary(model_dir: Path, size: int) -> None:
    """With repeated rows for the tokens that the tokenizer does not have."""
    tensors = load_file(model_dir / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name]])[:size]
    save_file(tensors, model_dir / "model.safetensors")
    config = json.loads((model_dir / "config.json").read_text()) | {"vocab_size": size}
    (model_dir / "config.json").write_text(json.dumps(config))


def test_a_model_without_whole_groups_is_refused_before_anything_is_written(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"attention\.qkv\.weight has 64 input features, 4-bit weights need"):
        quantize_model(saved_model, tmp_path / "c", "awq")
    assert list(tmp_path.iterdir()) == []
