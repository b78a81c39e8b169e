"""The model computes what Hugging Face's Mixtral computes with the same (dequantised) weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import reference_model

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.quantize import quantize_model
from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.pytorch.model import MixtralModel

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8, 8, 61, 4, 120, 99, 3, 50, 51, 52, 53, 12]
DEMO_MODEL = Path(__file__).parents[2] / "models" / "tiny-mixtral"


def assert_same_logits_and_text(checkpoint: Checkpoint, prompt: list[int]) -> None:
    reference = reference_model(checkpoint)
    model = MixtralModel.load(checkpoint, "cpu", torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
        text = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0]
    torch.testing.assert_close(model.forward_logits(prompt), expected, rtol=1e-4, atol=1e-4)
    # Teacher-forced greedy: each token of the reference's text must be the best one after its prefix.
    assert model.forward_logits(text.tolist())[len(prompt) - 1 : -1].argmax(-1).tolist() == text[len(prompt) :].tolist()


SHAPES = {
    "no grouping, 2 experts, top-1, heads of 32": (4, 4, 2, 1, 32),
    "2 query heads a key head, 4 experts, top-2, heads of 64": (4, 2, 4, 2, 64),
    "4 query heads a key head, 8 experts, top-2, heads of 128": (4, 1, 8, 2, 128),
    "8 query heads a key head, 8 experts, top-3, heads of 64": (8, 1, 8, 3, 64),
}


@pytest.mark.parametrize("precision", ["16bit", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_and_greedy_text_equal_transformers(
    make_checkpoint: Any, precision: str, shape: tuple[int, int, int, int, int]
) -> None:
    heads, kv_heads, experts, top_k, head_size = shape
    checkpoint = make_checkpoint(
        precision,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        head_dim=head_size,
    )
    assert_same_logits_and_text(checkpoint, PROMPT)


def test_bfloat16_activations_stay_near_float32(checkpoint: Checkpoint) -> None:
    exact = MixtralModel.load(checkpoint, "cpu", torch.float32).forward_logits(PROMPT).log_softmax(-1)
    rounded = MixtralModel.load(checkpoint, "cpu").forward_logits(PROMPT).log_softmax(-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1)  # Kullback-Leibler, per token
    assert divergence.mean() < 0.05
    assert divergence.mean() > 0  # bfloat16 was really used


@pytest.mark.parametrize("length", [0, 513])
def test_a_sequence_that_the_model_has_no_positions_for_is_refused(model: MixtralModel, length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"the sequence has {length} tokens, it must have from 1 to 512"):
        model.forward_logits([1] * length)


def test_weights_in_a_layout_of_tensorrt_llm_are_refused(make_checkpoint: Any) -> None:
    checkpoint = make_checkpoint("int8", layout="sm80", intermediate_size=128)
    with pytest.raises(CheckpointError, match="the sm80 layout, the PyTorch runtime reads plain"):
        MixtralModel.load(checkpoint, "cpu")


@pytest.mark.parametrize("precision", ["16bit", "int8", "awq"])
def test_the_demo_model_equals_transformers(tmp_path: Path, precision: str) -> None:
    calibration = CalibrationOptions(samples=16)
    quantize_model(DEMO_MODEL, tmp_path / "checkpoint", precision, calibration=calibration)
    assert_same_logits_and_text(Checkpoint.open(tmp_path / "checkpoint"), PROMPT)
