"""`--runtime auto` takes the better runtime that works here, and says why."""

import pytest

from mixtral_build import runtime_choice
from mixtral_build.runtime_choice import choose_runtime, describe_choice
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device, find_device
from mixtral_runtime.plan import with_precision

A100, H100, CPU = (find_device(name) for name in ("a100", "h100", "cpu"))


def have(monkeypatch: pytest.MonkeyPatch, *, library: bool, gpu: bool) -> None:
    monkeypatch.setattr(runtime_choice, "find_spec", lambda name: object() if library else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)


def test_what_was_asked_for_is_taken(mixtral_8x7b: CheckpointConfig) -> None:
    for runtime in ("pytorch", "tensorrt-llm"):
        choice = choose_runtime(runtime, mixtral_8x7b, A100)
        assert (choice.value, choice.reason) == (runtime, "asked for")


@pytest.mark.parametrize(
    ("library", "gpu", "device", "precision", "runtime", "reason"),
    [
        (False, True, A100, "int8", "pytorch", "TensorRT-LLM is not installed"),
        (True, False, A100, "int8", "pytorch", "no GPU here"),
        (True, True, CPU, "int8", "pytorch", "TensorRT-LLM needs a GPU"),
        (True, True, A100, "fp8", "pytorch", "a100 is SM80, FP8 needs SM89"),
        (True, True, H100, "awq", "pytorch", "NVIDIA does not list W4A16_AWQ"),
        (True, True, A100, "int8", "tensorrt-llm", "it is installed, and it supports this precision on a100"),
        (True, True, H100, "fp8", "tensorrt-llm", "it is installed"),
    ],
)
def test_auto(
    mixtral_8x7b: CheckpointConfig,
    monkeypatch: pytest.MonkeyPatch,
    library: bool,
    gpu: bool,
    device: Device,
    precision: str,
    runtime: str,
    reason: str,
) -> None:
    have(monkeypatch, library=library, gpu=gpu)
    choice = choose_runtime("auto", with_precision(mixtral_8x7b, precision), device)
    assert choice.value == runtime
    assert choice.reason.startswith(reason)


def test_the_gpu_has_a_reason_too() -> None:
    assert describe_choice("a100", A100).reason == "asked for"
    assert describe_choice("auto", CPU).reason == "no GPU here"
    assert describe_choice("auto", H100).reason == "h100 is in this machine"
