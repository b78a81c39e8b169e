"""The `trtllm-build` command, flag by flag, against the flags that the program was recorded to have."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_build.trtllm_command import check_combination, trtllm_build_command, warnings
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import Mapping
from mixtral_runtime.devices import GB, Device, find_device
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import with_precision

A100, H100, H200 = (find_device(name) for name in ("a100", "h100", "h200"))
ADA, BLACKWELL = Device("l40s", "sm89", 48 * GB), Device("b200", "sm100", 180 * GB)
FLAGS: dict[str, Any] = json.loads(
    files("mixtral_build").joinpath("data/trtllm_build_flags.json").read_text(encoding="utf-8")
)
ALLOWED = [
    (precision, device, preset)
    for precision, devices in {
        "int8": (A100, H100, H200),
        "fp8": (H100, H200),
        "awq": (A100, H100),
        "16bit": (H200,),
    }.items()
    for device in devices
    for preset in ("latency", "throughput")
]


def checkpoint(
    config: CheckpointConfig, precision: str, device: Device, kv_cache: str | None = None
) -> CheckpointConfig:
    quantized = with_precision(config, precision, kv_cache)
    return replace(quantized, layout="sm90" if device.sm == 90 else "sm80") if precision == "int8" else quantized


def flags_of(command: list[str]) -> dict[str, str]:
    assert command[0] == "trtllm-build"
    assert len(command) % 2 == 1
    names = command[1::2]
    assert len(set(names)) == len(names)
    return dict(zip(names, command[2::2], strict=True))


def build(config: CheckpointConfig, device: Device, preset: str = "latency") -> dict[str, str]:
    limits = plan_limits(config, device, LimitOverrides(), preset)
    return flags_of(
        trtllm_build_command(config, device, limits, checkpoint_dir=Path("checkpoint"), engine_dir=Path("engine"))
    )


def test_int8_on_an_a100(mixtral_8x7b: CheckpointConfig) -> None:
    assert build(checkpoint(mixtral_8x7b, "int8", A100), A100) == {
        "--checkpoint_dir": "checkpoint",
        "--output_dir": "engine",
        "--max_batch_size": "16",
        "--max_input_len": "32767",
        "--max_seq_len": "32768",
        "--max_num_tokens": "2048",
        "--max_beam_width": "1",
        "--kv_cache_type": "paged",
        "--tokens_per_block": "32",
        "--remove_input_padding": "enable",
        "--gpt_attention_plugin": "auto",
        "--gemm_plugin": "auto",
        "--moe_plugin": "auto",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "enable",
        "--use_fp8_context_fmha": "disable",
        "--multiple_profiles": "enable",
        "--logits_dtype": "float32",
        "--workers": "1",
        "--output_timing_cache": "engine/model.cache",
        "--log_level": "info",
    }


@pytest.mark.parametrize(
    ("precision", "kv_cache", "gemm_plugin", "fp8_attention"),
    [
        ("16bit", "16bit", "auto", "disable"),
        ("int8", "16bit", "auto", "disable"),
        ("awq", "16bit", "auto", "disable"),
        ("fp8", "fp8", "disable", "enable"),
        ("fp8", "16bit", "disable", "disable"),
    ],
)
def test_what_the_precision_changes(
    mixtral_8x7b: CheckpointConfig, precision: str, kv_cache: str, gemm_plugin: str, fp8_attention: str
) -> None:
    flags = build(checkpoint(mixtral_8x7b, precision, H200, kv_cache), H200)
    assert (flags["--gemm_plugin"], flags["--use_fp8_context_fmha"]) == (gemm_plugin, fp8_attention)
    assert flags["--use_paged_context_fmha"] == flags["--multiple_profiles"] == "enable"
    assert flags["--moe_plugin"] == "auto"


def test_what_the_preset_changes(mixtral_8x7b: CheckpointConfig) -> None:
    config = checkpoint(mixtral_8x7b, "fp8", H100)
    latency, throughput = build(config, H100, "latency"), build(config, H100, "throughput")
    changed = {name: (latency[name], throughput[name]) for name in latency if latency[name] != throughput[name]}
    assert changed == {"--max_batch_size": ("16", "256"), "--max_num_tokens": ("2048", "8192")}


def test_tensor_parallel_engines_have_a_worker_for_each_rank_and_communicate(mixtral_8x7b: CheckpointConfig) -> None:
    config = replace(checkpoint(mixtral_8x7b, "16bit", A100), mapping=Mapping.tensor_parallel(2))
    flags = build(config, A100)
    assert (flags["--workers"], flags["--nccl_plugin"]) == ("2", "auto")
    assert "--nccl_plugin" not in build(checkpoint(mixtral_8x7b, "int8", A100), A100)


def test_an_earlier_timing_cache_is_read(mixtral_8x7b: CheckpointConfig) -> None:
    config = checkpoint(mixtral_8x7b, "fp8", H100)
    limits = plan_limits(config, H100, LimitOverrides())
    command = trtllm_build_command(
        config, H100, limits, checkpoint_dir=Path("c"), engine_dir=Path("e"), timing_cache=Path("old/model.cache")
    )
    assert flags_of(command)["--input_timing_cache"] == "old/model.cache"


@pytest.mark.parametrize(("precision", "device", "preset"), ALLOWED)
def test_every_flag_exists_and_has_an_allowed_value(
    mixtral_8x7b: CheckpointConfig, precision: str, device: Device, preset: str
) -> None:
    for name, value in build(checkpoint(mixtral_8x7b, precision, device), device, preset).items():
        recorded = FLAGS[name]
        assert not recorded.get("deprecated")
        assert recorded["type"] != "store_true", name
        if recorded["type"] == "int":
            assert int(value) > 0
        if recorded["choices"] is not None:
            assert value in recorded["choices"], name


@pytest.mark.parametrize(
    ("precision", "kv_cache", "device", "reason"),
    [
        ("fp8", "fp8", A100, "a100 is SM80, FP8 needs SM89 or later"),
        ("fp8", "16bit", A100, "a100 is SM80, FP8 needs SM89 or later"),
        ("int8", "fp8", H100, "an FP8 KV cache with W8A16 weights .* drop paged context attention"),
        ("int8", "fp8", A100, "a100 is SM80, FP8 needs SM89 or later"),
        ("awq", "fp8", H100, "an FP8 KV cache with W4A16_AWQ weights"),
        ("16bit", "fp8", H200, "an FP8 KV cache with 16-bit weights"),
        ("int8", "16bit", BLACKWELL, "W8A16 weights cannot be built for b200 .* SM100 to SM119"),
        ("awq", "16bit", BLACKWELL, "W4A16_AWQ weights cannot be built for b200"),
        ("int8", "16bit", find_device("cpu"), "TensorRT-LLM needs a GPU, --gpu is cpu"),
    ],
)
def test_known_bad_pairs_are_refused_with_the_reason(
    mixtral_8x7b: CheckpointConfig, precision: str, kv_cache: str, device: Device, reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        check_combination(with_precision(mixtral_8x7b, precision, kv_cache), device)


@pytest.mark.parametrize(
    ("precision", "kv_cache", "device"),
    [("fp8", "fp8", ADA), ("fp8", "fp8", BLACKWELL), ("16bit", "16bit", BLACKWELL), ("int8", "16bit", ADA)],
)
def test_other_cards_take_what_they_can(
    mixtral_8x7b: CheckpointConfig, precision: str, kv_cache: str, device: Device
) -> None:
    check_combination(with_precision(mixtral_8x7b, precision, kv_cache), device)


@pytest.mark.parametrize(
    ("layout", "device", "needed"), [("sm80", H100, "sm90"), ("sm90", A100, "sm80"), ("plain", A100, "sm80")]
)
def test_int8_weights_in_another_layout_are_refused(
    mixtral_8x7b: CheckpointConfig, layout: str, device: Device, needed: str
) -> None:
    config = replace(with_precision(mixtral_8x7b, "int8"), layout=layout)
    with pytest.raises(
        InvalidArgument, match=rf"layout {layout}, {device.name} needs {needed}; `mixtral-build convert"
    ):
        build(config, device)


def test_warnings_say_what_the_user_should_know(mixtral_8x7b: CheckpointConfig) -> None:
    def warned(precision: str, device: Device, kv_cache: str | None = None) -> list[str]:
        return warnings(with_precision(mixtral_8x7b, precision, kv_cache), device)

    assert warned("int8", A100) == warned("fp8", H100) == warned("16bit", H200) == []
    assert "NVIDIA does not list W4A16_AWQ for Mixtral" in warned("awq", A100)[0]
    assert "fp8 is faster there" in warned("int8", H100)[0]
    assert "16-bit KV cache" in warned("fp8", H100, "16bit")[0]
