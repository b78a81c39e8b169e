"""The server's settings: every section checks its own values, and the error names file, key and what is allowed."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings
from mixtral_serving.serve_config import EngineConfig, ServeConfig


def load(folder: Path, text: str) -> ServeConfig:
    path = folder / "serve.toml"
    path.write_text(text)
    return ServeConfig.load(path)


def test_sections_are_read_side_by_side_and_default_each(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "[tensorrt_llm]\nkv_cache_free_gpu_memory_fraction = 0.8\nmax_queue_size = 7\n"
        'scheduler_policy = "max_utilization"\n[engine]\ndrain_s = 2',
    )
    assert config.engine == EngineConfig(drain_s=2.0)
    assert config.tensorrt_llm == TensorRtLlmSettings(
        kv_cache_free_gpu_memory_fraction=0.8, max_queue_size=7, scheduler_policy="max_utilization"
    )


def test_long_prompts_are_chunked_and_prefixes_are_reused_unless_told_otherwise() -> None:
    settings = ServeConfig().tensorrt_llm
    assert settings.chunked_context
    assert settings.kv_cache_block_reuse
    assert settings.kv_cache_free_gpu_memory_fraction == 0.9


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("kv_cache_free_gpu_memory_fraction = 1.0", "fraction is 1, it must be above 0 and at most 0.99"),
        ("kv_cache_free_gpu_memory_fraction = 0", "fraction is 0, it must be above 0"),
        ('kv_cache_free_gpu_memory_fraction = "0.9"', "fraction is '0.9', it must be a number"),
        ("kv_cache_max_tokens = 0", "kv_cache_max_tokens is 0, it must be at least 1"),
        ("kv_cache_max_tokens = 1.5", "kv_cache_max_tokens is 1.5, it must be a whole number"),
        ("chunked_context = 1", "chunked_context is 1, it must be true or false"),
        ('scheduler_policy = "static"', "is 'static', it must be one of guaranteed_no_evict, max_utilization"),
        ("max_queue_size = true", "max_queue_size is True, it must be a whole number"),
        ("kv_cache_host_bytes = -1", "kv_cache_host_bytes is -1, it must be at least 0"),
        ("cuda_graph_cache_size = 8", "cuda_graph_cache_size is 8, without cuda_graph_mode it must be 0"),
        ("onboard_blocks = true", "unknown key tensorrt_llm.onboard_blocks, known are kv_cache_free"),
    ],
)
def test_a_wrong_setting_is_refused_with_file_key_and_range(tmp_path: Path, setting: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint) as refused:
        load(tmp_path, f"[tensorrt_llm]\n{setting}")
    assert str(refused.value).startswith(f"{tmp_path / 'serve.toml'}: ")
    assert "tensorrt_llm." in str(refused.value)


def test_the_queue_s_limit_is_at_least_a_token(tmp_path: Path) -> None:
    assert load(tmp_path, "[engine]\nmax_queued_tokens = 5000").engine.max_queued_tokens == 5000
    with pytest.raises(InvalidArgument, match=r"engine\.max_queued_tokens is 0, it must be at least 1"):
        load(tmp_path, "[engine]\nmax_queued_tokens = 0")


def test_every_setting_is_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
    kinds = get_type_hints(ServeConfig)
    for section in fields(ServeConfig):
        assert f"`[{section.name}]`" in page
        for key in fields(kinds[section.name]):
            assert f"`{key.name}`" in page or f"`{section.name}.{key.name}`" in page, f"{section.name}.{key.name}"
