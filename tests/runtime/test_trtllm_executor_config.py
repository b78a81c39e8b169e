"""From manifest and operator settings to the executor's configuration, over the strict classes, and its statistics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trtllm_double
from strict_bindings import set_values

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.executor_config import effective_limits, executor_config
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings
from mixtral_runtime.tensorrt_llm.statistics import ExecutorStatistics

trtllm: Any = trtllm_double


@pytest.fixture
def manifest(trtllm_engine_dir: Path) -> Manifest:
    return Manifest.load(trtllm_engine_dir)


def given(thing: Any) -> dict[str, Any]:
    """The properties of a bindings object that are not None."""
    return {name: value for name, value in thing._values.items() if value is not None}


def test_the_configuration_by_default(manifest: Manifest) -> None:
    config = executor_config(trtllm, manifest, TensorRtLlmSettings())
    assert config.enable_chunked_context is True
    assert config.max_beam_width == 1
    assert (config.max_batch_size, config.max_num_tokens, config.max_queue_size) == (8, 128, 32)
    assert config.batching_type is trtllm.BatchingType.INFLIGHT
    assert config.scheduler_config.capacity_scheduler_policy is trtllm.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    assert config.parallel_config is None
    assert given(config.kv_cache_config) == given(
        trtllm.KvCacheConfig(enable_block_reuse=True, free_gpu_memory_fraction=0.9)
    )
    knobs = config.extended_runtime_perf_knob_config
    assert (knobs.multi_block_mode, knobs.enable_context_fmha_fp32_acc) == (True, False)
    assert (knobs.cuda_graph_mode, knobs.cuda_graph_cache_size) == (False, 0)


def test_normalised_log_probs_are_always_refused_by_name(manifest: Manifest) -> None:
    """Their default differs between versions, and normalised a greedy token's would always be 0."""
    config = executor_config(trtllm, manifest, TensorRtLlmSettings())
    assert config._bound["normalize_log_probs"] is False


def test_every_setting_reaches_the_configuration(manifest: Manifest) -> None:
    settings = TensorRtLlmSettings(
        kv_cache_free_gpu_memory_fraction=0.5,
        kv_cache_max_tokens=4096,
        kv_cache_block_reuse=False,
        kv_cache_host_bytes=2**30,
        scheduler_policy="max_utilization",
        max_batch_size=2,
        max_num_tokens=64,
        max_queue_size=3,
        cuda_graph_mode=True,
        cuda_graph_cache_size=16,
        multi_block_mode=False,
        context_fmha_fp32_acc=True,
    )
    config = executor_config(trtllm, manifest, settings)
    kv_cache, knobs = config.kv_cache_config, config.extended_runtime_perf_knob_config
    assert (kv_cache.free_gpu_memory_fraction, kv_cache.max_tokens, kv_cache.host_cache_size) == (0.5, 4096, 2**30)
    assert kv_cache.enable_block_reuse is False
    assert config.scheduler_config.capacity_scheduler_policy is trtllm.CapacitySchedulerPolicy.MAX_UTILIZATION
    assert (config.max_batch_size, config.max_num_tokens, config.max_queue_size) == (2, 64, 3)
    assert (knobs.cuda_graph_mode, knobs.cuda_graph_cache_size) == (True, 16)
    assert (knobs.multi_block_mode, knobs.enable_context_fmha_fp32_acc) == (False, True)
    unchunked = executor_config(trtllm, manifest, TensorRtLlmSettings(chunked_context=False))
    assert unchunked.enable_chunked_context is False


def test_the_manifests_kv_cache_tokens_are_a_limit(manifest: Manifest) -> None:
    config = executor_config(trtllm, replace(manifest, kv_cache_tokens=1024), TensorRtLlmSettings())
    assert config.kv_cache_config.max_tokens == 1024


def test_limits_may_be_lowered_never_raised() -> None:
    built = EngineLimits(8, 100, 128, 64, max_queue_size=0)
    assert effective_limits(built, TensorRtLlmSettings(max_batch_size=8)) == replace(built, max_queue_size=1)
    with pytest.raises(InvalidArgument, match=r"tensorrt_llm\.max_batch_size is 9, the engine was built for 8"):
        effective_limits(built, TensorRtLlmSettings(max_batch_size=9))
    with pytest.raises(InvalidArgument, match=r"tensorrt_llm\.max_num_tokens is 65, the engine was built for 64"):
        effective_limits(built, TensorRtLlmSettings(max_num_tokens=65))


def test_two_gpus_are_led_by_the_first_rank_over_mpi(manifest: Manifest) -> None:
    files = {f"rank{rank}.engine": manifest.files["config.json"] for rank in range(2)}
    config = executor_config(trtllm, replace(manifest, files=files), TensorRtLlmSettings())
    assert config.parallel_config.communication_type is trtllm.CommunicationType.MPI
    assert config.parallel_config.communication_mode is trtllm.CommunicationMode.LEADER


# Statistics


def test_statistics_are_handed_out_once_and_kept() -> None:
    def iteration(number: int, paused: int, reused: int) -> Any:
        kv_cache = set_values(
            trtllm.KvCacheStats(),
            max_num_blocks=100,
            free_num_blocks=100 - number,
            tokens_per_block=32,
            reused_blocks=reused,
            missed_blocks=2,
        )
        inflight = set_values(trtllm.InflightBatchingStats(), num_paused_requests=paused)
        return set_values(
            trtllm.IterationStats(),
            iter=number,
            num_active_requests=3,
            kv_cache_stats=kv_cache,
            inflight_batching_stats=inflight,
        )

    known = ExecutorStatistics()
    known.add([])
    assert known == ExecutorStatistics()
    known.add([iteration(1, paused=1, reused=0), iteration(2, paused=2, reused=4)])
    known.add([iteration(3, paused=0, reused=5)])
    known.add([])  # idle
    assert known == ExecutorStatistics(3, 3, 100, 97, 32, 5, 2, preemptions=3)
    without_cache = set_values(trtllm.IterationStats(), iter=4, num_active_requests=0)
    known.add([without_cache])
    assert (known.steps, known.active, known.kv_blocks_total) == (4, 0, 100)
