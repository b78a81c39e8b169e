"""What is said of image, driver and limits, over machines that this one is not."""

from dataclasses import replace
from pathlib import Path

import pytest
from container_check.check import Failed, NotAvailable, Status
from container_check.environment import driver, driver_fault, image, limits
from container_check.machine import Gpu, Machine, look_around, parse_gpus
from container_check.workplace import Workplace

IN_IMAGE = Machine(
    image="26.07",
    triton="2.60.0",
    python="3.12.3",
    packages={
        "tensorrt_llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "torch": "2.10.0a0+b4e4ee81d3.nv25.12",
        "transformers": "4.57.1",
        "numpy": "1.26.4",
        "openai": "1.107.3",
        "nvidia-modelopt": "0.37.0",
        "tritonclient": "2.60.0",
    },
    driver="590.44.01",
    gpus=(Gpu("NVIDIA H100 80GB HBM3", 81559, "9.0"),),
    shm_bytes=2**30,
    memlock=None,
    stack=64 * 2**20,
    memory_bytes=2**37,
    cores=32,
    system="Linux x86_64",
)


def on(tmp_path: Path, machine: Machine) -> Workplace:
    return Workplace(tmp_path, tmp_path, machine)


def test_the_image_this_is_written_for(tmp_path: Path) -> None:
    for check in (image, driver, limits):
        assert check(on(tmp_path, IN_IMAGE)).status == Status.PASS


@pytest.mark.parametrize(
    ("python", "packages", "fault"),
    [
        ("3.11.9", {}, "Python is 3.11.9, Triton's stub in this image loads 3.12"),
        ("3.12.3", {"numpy": "2.1.0"}, "numpy is 2.1.0, Triton's Python stub corrupts tensors silently from 2.0 on"),
        ("3.12.3", {"tensorrt_llm": "1.1.0"}, "tensorrt_llm is 1.1.0, this project is written for 1.2.1"),
        (
            "3.12.3",
            {"tensorrt_llm": None},
            "tensorrt_llm is not installed for this Python; the image's environment must be first on PATH",
        ),
        ("3.12.3", {"torch": None}, "torch is not installed"),
    ],
)
def test_versions_that_do_not_fit(tmp_path: Path, python: str, packages: dict[str, str | None], fault: str) -> None:
    machine = replace(IN_IMAGE, python=python, packages=IN_IMAGE.packages | packages)
    with pytest.raises(Failed) as failure:
        image(on(tmp_path, machine))
    assert failure.value.args[0] == fault


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("590.44.01", None),
        ("595.10", None),
        ("600.01", None),
        ("580.95.05", None),
        ("579.99", "the driver is 579.99, CUDA 13.1 of this image needs the 580 series or later"),
        ("535.183.01", "the driver is 535.183.01, CUDA 13.1 of this image needs the 580 series or later"),
        ("[N/A]", "the driver's version is [N/A], which is no version number"),
    ],
)
def test_drivers(version: str, fault: str | None) -> None:
    assert driver_fault(version) == fault


def test_a_driver_that_is_too_old_gets_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(Failed) as failure:
        driver(on(tmp_path, replace(IN_IMAGE, driver="570.124.06")))
    advice = failure.value.advice
    assert advice is not None
    for part in (
        "590.44.01",
        "580 series",
        "25.10-trtllm-python-py3",
        "TensorRT-LLM 1.0.0",
        "build every engine again",
    ):
        assert part in advice


def test_a_driver_between_is_told_to_run_in_compatibility_mode(tmp_path: Path) -> None:
    (line,) = driver(on(tmp_path, replace(IN_IMAGE, driver="580.95.05"))).details
    assert line == "driver 580.95.05, older than the image's own 590.44.01: CUDA's compatibility mode"


def test_a_gpu_that_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="GPU 0 is SM70, the kernels for these weights begin with SM80"):
        driver(on(tmp_path, replace(IN_IMAGE, gpus=(Gpu("Tesla V100", 32768, "7.0"),))))


def test_limits_of_a_container_started_without_options(tmp_path: Path) -> None:
    machine = replace(IN_IMAGE, shm_bytes=64 * 2**20, memlock=8 * 2**20, stack=8 * 2**20)
    assert limits(on(tmp_path, machine)).details == (
        "/dev/shm 64 MiB free, better 1 GiB: --shm-size=1g",
        "memlock 8 MiB, better unlimited: --ulimit memlock=-1",
        "stack 8 MiB, better 64: --ulimit stack=67108864",
    )
    with pytest.raises(Failed) as failure:
        limits(on(tmp_path, replace(machine, shm_bytes=2**20)))
    assert failure.value.advice == "start the container with --shm-size=1g"


def test_what_nvidia_smi_says() -> None:
    text = "590.44.01, 81920, 8.0, NVIDIA A100-SXM4-80GB\n590.44.01, 183359, 10.0, NVIDIA B200, with a comma\n"
    driver_version, gpus = parse_gpus(text)
    assert driver_version == "590.44.01"
    assert [(gpu.name, gpu.sm) for gpu in gpus] == [("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA B200, with a comma", 100)]
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the driver.") == (None, ())


def test_outside_of_the_image_nothing_of_it_is_known(tmp_path: Path) -> None:
    outside = replace(IN_IMAGE, image=None, driver=None, gpus=())
    for check in (image, driver, limits):
        with pytest.raises(NotAvailable):
            check(on(tmp_path, outside))


def test_an_image_is_recognised_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_around(tmp_path / "absent").image is None
    (tmp_path / "TRITON_VERSION").write_text("2.60.0\n")
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.07")
    machine = look_around(tmp_path)
    assert (machine.image, machine.triton) == ("26.07", "2.60.0")
