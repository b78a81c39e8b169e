"""`GPU=auto` on a machine with a GPU: from the card that the driver shows to the device that the engine opens on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixtral_build.calibrated_format import CalibrationOptions
from mixtral_build.cli import run
from mixtral_build.quantize import quantize_model
from mixtral_runtime.devices import GB, find_device, fp8_conversion
from mixtral_runtime.errors import CheckpointError
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.open_engine import open_engine
from mixtral_runtime.pytorch.engine import PyTorchEngine

H200_MEMORY = 150_754_820_096  # bytes that the driver shows, more than the card is sold with


class Gpu:
    """What the driver says of the one card of this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, name: str, capability: tuple[int, int], memory: int, **more: int) -> None:
        major, minor = capability
        found = SimpleNamespace(name=name, major=major, minor=minor, total_memory=memory, **more)
        for function, result in (
            ("is_available", True),
            ("get_device_properties", found),
            ("get_device_capability", capability),
            ("get_device_name", name),
        ):
            self._monkeypatch.setattr(torch.cuda, function, lambda *_, result=result: result)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that PyTorch engines were opened on."""
    found: list[Any] = []
    monkeypatch.setattr(PyTorchEngine, "open", lambda directory, manifest, device, *_: found.append(device))
    return found


def build(checkpoint: Path, engine: Path, *options: str) -> None:
    assert run(["engine", str(checkpoint), str(engine), "--runtime", "pytorch", *options]) == 0


def test_a_known_card_has_its_own_memory_and_the_table_s_speed(gpu: Gpu) -> None:
    gpu("NVIDIA H200", (9, 0), H200_MEMORY)
    device = find_device("auto")
    assert (device.name, device.architecture, device.memory) == ("h200", "sm90", H200_MEMORY)
    assert device.bandwidth == find_device("h200").bandwidth


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA H200 NVL"])
def test_a_card_that_is_called_alike_is_not_taken_for_another(gpu: Gpu, name: str) -> None:
    gpu(name, (9, 0), 42 * GB)
    device = find_device("auto")
    assert (device.name, device.memory, device.bandwidth, device.flops) == (name, 42 * GB, None, None)


def test_an_unknown_card_s_bandwidth_is_its_memory_s_clock_and_width_where_they_are_told(gpu: Gpu) -> None:
    gpu("NVIDIA L4", (8, 9), 24 * GB, memory_clock_rate=6_251_000, memory_bus_width=192)
    assert find_device("auto").bandwidth == pytest.approx(300e9, rel=0.001)
    assert find_device("auto").memory == 24 * GB


def test_only_cards_before_sm89_convert() -> None:
    found = {name: fp8_conversion(find_device(name)) for name in ("cpu", "a100", "h100", "h200")}
    assert [name for name, remark in found.items() if remark] == ["a100"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_for_this_machine_s_gpu_opens_on_it(
    gpu: Gpu,
    opened: list[Any],
    grouped_model: Path,
    tmp_path: Path,
    precision: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    built = tmp_path / "engine"
    quantize_model(grouped_model, tmp_path / "checkpoint", precision, calibration=CalibrationOptions(samples=2))
    gpu("NVIDIA A100-SXM4-80GB", (8, 0), 85 * GB)
    build(tmp_path / "checkpoint", built)
    said = capsys.readouterr().err
    assert "gpu sm80: a100 is in this machine" in said
    assert Manifest.load(built).gpu == "sm80"
    with caplog.at_level("WARNING"):
        open_engine(built)
    assert opened == [torch.device("cuda")]
    converted = "a100 is SM80 and has no FP8 arithmetic"
    assert (f"warning: {converted}" in said) == (precision == "fp8")
    assert any("is SM80 and has no FP8 arithmetic" in one for one in caplog.messages) == (precision == "fp8")


def test_another_card_than_the_engine_s_is_refused(
    gpu: Gpu, opened: list[Any], saved_model: Path, tmp_path: Path
) -> None:
    quantize_model(saved_model, tmp_path / "checkpoint", "int8")
    gpu("NVIDIA H200", (9, 0), H200_MEMORY)
    build(tmp_path / "checkpoint", tmp_path / "engine")
    gpu("NVIDIA A100-SXM4-80GB", (8, 0), 85 * GB)
    with pytest.raises(CheckpointError, match="the engine was built for sm90, the device is sm80"):
        open_engine(tmp_path / "engine")
    assert opened == []


def test_an_engine_for_the_cpu_stays_there(gpu: Gpu, opened: list[Any], saved_model: Path, tmp_path: Path) -> None:
    quantize_model(saved_model, tmp_path / "checkpoint", "int8")
    build(tmp_path / "checkpoint", tmp_path / "engine", "--gpu", "cpu")
    gpu("NVIDIA H200", (9, 0), H200_MEMORY)
    open_engine(tmp_path / "engine")
    assert opened == [torch.device("cpu")]
