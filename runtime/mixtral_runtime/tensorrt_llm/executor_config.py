"""From the engine's manifest and the operator's settings to the executor's configuration.

Arguments go by keyword only, because their order differs between versions; what has no value is left out, because
None is a TypeError where the library's type is not optional.
"""

from dataclasses import replace
from typing import Any

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings

# More than any reader leaves between two readings: what the executor drops is missing in the counts.
STATS_ITERATIONS = 1000


def effective_limits(built: EngineLimits, settings: TensorRtLlmSettings) -> EngineLimits:
    """The limits the engine was built with, lowered where the operator says so. Raises InvalidArgument for more."""
    chosen: dict[str, int] = {}
    for name in ("max_batch_size", "max_num_tokens"):
        value, limit = getattr(settings, name), getattr(built, name)
        if value is not None and value > limit:
            raise InvalidArgument(f"tensorrt_llm.{name} is {value}, the engine was built for {limit}")
        chosen[name] = limit if value is None else value
    # Every request passes through the executor's queue, and to it 0 means no limit.
    chosen["max_queue_size"] = max(1, settings.max_queue_size or built.max_queue_size)
    return replace(built, **chosen)


def executor_config(trtllm: Any, manifest: Manifest, settings: TensorRtLlmSettings) -> Any:
    """trtllm: the bindings. Returns an ExecutorConfig. Raises InvalidArgument for settings beyond the engine's."""
    limits = effective_limits(manifest.limits, settings)
    arguments: dict[str, Any] = {}
    if manifest.world_size > 1:
        arguments["parallel_config"] = trtllm.ParallelConfig(
            communication_type=trtllm.CommunicationType.MPI, communication_mode=trtllm.CommunicationMode.LEADER
        )
    return trtllm.ExecutorConfig(
        max_beam_width=1,
        scheduler_config=trtllm.SchedulerConfig(capacity_scheduler_policy=_policy(trtllm, settings)),
        kv_cache_config=_kv_cache_config(trtllm, manifest, settings),
        enable_chunked_context=settings.chunked_context,
        # Its default changed between versions. Normalised, a log probability is relative to the top-k candidates
        # instead of the vocabulary, and always 0 for a greedy token.
        normalize_log_probs=False,
        iter_stats_max_iterations=STATS_ITERATIONS,
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=limits.max_queue_size,
        extended_runtime_perf_knob_config=_knobs(trtllm, settings),
        **arguments,
    )


def _policy(trtllm: Any, settings: TensorRtLlmSettings) -> Any:
    if settings.scheduler_policy == "max_utilization":
        return trtllm.CapacitySchedulerPolicy.MAX_UTILIZATION
    return trtllm.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT


def _kv_cache_config(trtllm: Any, manifest: Manifest, settings: TensorRtLlmSettings) -> Any:
    arguments: dict[str, Any] = {}
    if (tokens := settings.kv_cache_max_tokens or manifest.kv_cache_tokens) is not None:
        arguments["max_tokens"] = tokens
    if settings.kv_cache_host_bytes:
        arguments["host_cache_size"] = settings.kv_cache_host_bytes
    return trtllm.KvCacheConfig(
        # Reused blocks are not computed again, so they would have no logits for the prompt's log probabilities.
        enable_block_reuse=settings.kv_cache_block_reuse and not manifest.returns.prompt_log_probs,
        free_gpu_memory_fraction=settings.kv_cache_free_gpu_memory_fraction,
        **arguments,
    )


def _knobs(trtllm: Any, settings: TensorRtLlmSettings) -> Any:
    knobs = trtllm.ExtendedRuntimePerfKnobConfig(
        multi_block_mode=settings.multi_block_mode, enable_context_fmha_fp32_acc=settings.context_fmha_fp32_acc
    )
    # Properties, unlike the two above: the constructor does not know them.
    knobs.cuda_graph_mode = settings.cuda_graph_mode
    knobs.cuda_graph_cache_size = settings.cuda_graph_cache_size
    return knobs
