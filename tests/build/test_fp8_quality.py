"""FP8 on the demo model: the engine computes what transformers computes with the same rounded weights and activations,
honest damage is small, and faults that a converter could well have are not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e4m3
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.compare import Comparison, compare_models
from mixtral_build.model_directory import ModelDirectory
from mixtral_build.quantize import quantize_model
from mixtral_build.texts import read_texts
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tokenizer import load_tokenizer

LAYER = "transformer.layers.1."
WEIGHTS = "rank0.safetensors"
BRIEF = CalibrationOptions(samples=40)


@pytest.fixture(scope="module")
def texts(demo_model: Path) -> list[str]:
    return list(read_texts(demo_model / "heldout.jsonl"))[::10]


@pytest.fixture(scope="module")
def fp8(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fp8") / "checkpoint"
    quantize_model(demo_model, target, "fp8", calibration=BRIEF)
    return target


@pytest.fixture(scope="module")
def fp8_weights(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a 16-bit KV cache."""
    target = tmp_path_factory.mktemp("fp8-weights") / "checkpoint"
    quantize_model(demo_model, target, "fp8", kv_cache="16bit", calibration=BRIEF)
    return target


class FakeQuantised(nn.Module):
    """A linear of transformers whose input is first rounded to E4M3 in units of `scale`."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(round_trip(x, self.scale), self.weight)


class FakeQuantisedExperts(nn.Module):
    """The experts one token and one expert after the other."""

    def __init__(self, fc: list[FakeQuantised], proj: list[FakeQuantised]) -> None:
        super().__init__()
        self.fc, self.proj = nn.ModuleList(fc), nn.ModuleList(proj)

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        rows = []
        for x, experts, weights in zip(hidden, chosen.tolist(), shares, strict=True):
            total = torch.zeros_like(x)
            for expert, weight in zip(experts, weights, strict=True):
                up, gate = self.fc[expert](x).chunk(2)
                total += weight * self.proj[expert](F.silu(gate) * up)
            rows.append(total)
        return torch.stack(rows)


def round_trip(x: Tensor, scale: float) -> Tensor:
    return torch.from_numpy(e4m3.round_trip(x.detach().numpy(), scale))


def fake_quantised(tensors: dict[str, Tensor], name: str, expert: int | None = None) -> FakeQuantised:
    codes, scale = tensors[f"{name}.weight"].view(torch.uint8), tensors[f"{name}.weights_scaling_factor"]
    if expert is not None:
        codes, scale = codes[expert], scale[expert]
    weight = torch.from_numpy(e4m3.decode(codes.numpy())) * scale
    return FakeQuantised(weight, tensors[f"{name}.activation_scaling_factor"].item())


def reference_model(model_dir: Path, checkpoint_dir: Path) -> Any:
    """transformers in float32, its linears replaced by what the checkpoint's bytes say. The KV cache stays exact."""
    tensors = load_file(checkpoint_dir / WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    for index, layer in enumerate(model.model.layers):
        prefix, attention = f"transformer.layers.{index}.", layer.self_attn
        qkv = fake_quantised(tensors, f"{prefix}attention.qkv")
        sizes = [linear.out_features for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        for name, weight in zip(("q_proj", "k_proj", "v_proj"), torch.split(qkv.weight, sizes), strict=True):
            setattr(attention, name, FakeQuantised(weight, qkv.scale))
        attention.o_proj = fake_quantised(tensors, f"{prefix}attention.dense")
        fc, proj = (
            [fake_quantised(tensors, f"{prefix}mlp.{name}", e) for e in range(model.config.num_local_experts)]
            for name in ("fc", "proj")
        )
        layer.mlp.experts = FakeQuantisedExperts(fc, proj)
    return model


def test_the_engines_model_equals_transformers_on_rounded_weights_and_activations(
    demo_model: Path, fp8_weights: Path, texts: list[str]
) -> None:
    """Where the two sum in another order, an activation near the middle of two E4M3 values may fall on the other side:
    hence a mean divergence, a hundredth of what FP8 itself costs, instead of a bound for each logit."""
    reference = reference_model(demo_model, fp8_weights)
    model = MixtralModel.load(Checkpoint.open(fp8_weights), "cpu", torch.float32)
    tokenizer, divergence = load_tokenizer(demo_model), []
    with torch.inference_mode():
        for text in texts[:2]:
            ids = tokenizer(text)["input_ids"][:100]
            expected = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
            found = model.forward_logits(ids).log_softmax(-1)
            divergence.append((expected.exp() * (expected - found)).sum(-1))
    assert torch.cat(divergence).median() < 1e-6  # most tokens meet no such activation
    assert torch.cat(divergence).mean() < 2e-5


def test_logits_do_not_depend_on_how_the_prompt_was_cut(fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an FP8 cache too, bit for bit, in the checkpoint's own dtype."""
    model = MixtralModel.load(Checkpoint.open(fp8), "cpu")
    ids = [1 + 7 * i % 1500 for i in range(45)]
    whole = model.forward_logits(ids)
    for size in (7, 32):
        monkeypatch.setattr("mixtral_runtime.pytorch.model.EVALUATION_CHUNK", size)
        assert torch.equal(model.forward_logits(ids), whole), size


def test_the_cache_alone_is_what_sets_the_two_checkpoints_apart(fp8: Path, fp8_weights: Path) -> None:
    with_scales, without = load_file(fp8 / WEIGHTS), load_file(fp8_weights / WEIGHTS)
    assert {name for name in with_scales if name not in without} == {
        f"transformer.layers.{layer}.attention.kv_cache_{kind}scaling_factor"
        for layer in range(4)
        for kind in ("", "rcp_")
    }
    for name, tensor in without.items():
        assert torch.equal(tensor.view(torch.uint8), with_scales[name].view(torch.uint8)), name


@pytest.fixture(scope="module")
def honest(demo_model: Path, fp8: Path, texts: list[str]) -> Comparison:
    return compare(demo_model, fp8, texts)


def compare(a: Path, b: Path, texts: list[str]) -> Comparison:
    return compare_models(ModelDirectory.open(a), ModelDirectory.open(b), texts)


def test_fp8_costs_less_than_half_a_percent_of_perplexity(honest: Comparison) -> None:
    assert honest.tokens > 2000
    assert honest.perplexity_b == pytest.approx(honest.perplexity_a, rel=5e-3)
    assert honest.mean_kl < 5e-3
    assert honest.top1_agreement > 0.98


def forget_to_share_the_scale_of_w1_and_w3(tensors: dict[str, Tensor]) -> None:
    """The up projection quantised with its own scale, four times the one that is stored."""
    weight = tensors[f"{LAYER}mlp.fc.weight"]  # [experts, 2 * intermediate, hidden]
    up = weight[:, : weight.shape[1] // 2]
    up.copy_((up.float() / 4).to(weight.dtype))


def exchange_gate_and_up_projection(tensors: dict[str, Tensor]) -> None:
    weight = tensors[f"{LAYER}mlp.fc.weight"]
    tensors[f"{LAYER}mlp.fc.weight"] = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)


def shift_the_rows_of_one_expert(tensors: dict[str, Tensor]) -> None:
    rows = tensors[f"{LAYER}mlp.proj.weight"][0]
    rows.copy_(rows.clone().roll(1, dims=0))


def calibrate_on_too_little(tensors: dict[str, Tensor]) -> None:
    """Activations saturate at an eighth of what they reach."""
    for name in ("attention.qkv", "mlp.proj"):
        tensors[f"{LAYER}{name}.activation_scaling_factor"] /= 8


def exchange_the_cache_scale_with_its_reciprocal(tensors: dict[str, Tensor]) -> None:
    """With a cache scale of 16, as a layer with large keys would have it, read as a sixteenth."""
    tensors[f"{LAYER}attention.kv_cache_scaling_factor"].fill_(1 / 16 / 16)


@pytest.mark.parametrize(
    "plant",
    [
        forget_to_share_the_scale_of_w1_and_w3,
        exchange_gate_and_up_projection,
        shift_the_rows_of_one_expert,
        calibrate_on_too_little,
        exchange_the_cache_scale_with_its_reciprocal,
    ],
    ids=lambda f: f.__name__,
)
def test_a_fault_multiplies_the_divergence_by_ten(
    plant: Callable[[dict[str, Tensor]], None],
    demo_model: Path,
    fp8: Path,
    honest: Comparison,
    texts: list[str],
    tmp_path: Path,
) -> None:
    faulty = Path(shutil.copytree(fp8, tmp_path / "faulty"))
    tensors = load_file(faulty / WEIGHTS)
    plant(tensors)
    save_file(tensors, faulty / WEIGHTS)
    assert compare(demo_model, faulty, texts).mean_kl > 10 * honest.mean_kl
