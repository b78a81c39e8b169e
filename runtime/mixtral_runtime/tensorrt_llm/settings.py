"""What an operator tunes of TensorRT-LLM's executor."""

from dataclasses import dataclass
from typing import Literal

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.settings import check_range

SchedulerPolicy = Literal["guaranteed_no_evict", "max_utilization"]


@dataclass(frozen=True, slots=True)
class TensorRtLlmSettings:
    """The section `[tensorrt_llm]` of the server's settings. What is None is the engine's own value.

    kv_cache_free_gpu_memory_fraction: of the memory that is free when the engine is loaded. kv_cache_max_tokens: the
    manifest's value by default; the smaller of both limits wins. kv_cache_block_reuse: prompts that begin alike share
    blocks. kv_cache_host_bytes: blocks that give way go to host memory instead of being lost.
    chunked_context: long prompts are read in pieces between the steps of others. scheduler_policy: guaranteed_no_evict
    admits a request when its whole length fits; max_utilization admits more, and may pause and recompute one.
    max_batch_size, max_num_tokens: may lower what the engine was built for. max_queue_size: waiting requests.
    cuda_graph_mode, cuda_graph_cache_size (graphs): fewer launches at small batches. multi_block_mode,
    context_fmha_fp32_acc: attention kernels for long sequences, and their accumulation in 32 bits.
    """

    kv_cache_free_gpu_memory_fraction: float = 0.9
    kv_cache_max_tokens: int | None = None
    kv_cache_block_reuse: bool = True
    kv_cache_host_bytes: int = 0
    chunked_context: bool = True
    scheduler_policy: SchedulerPolicy = "guaranteed_no_evict"
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_queue_size: int | None = None
    cuda_graph_mode: bool = False
    cuda_graph_cache_size: int = 0
    multi_block_mode: bool = True
    context_fmha_fp32_acc: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the setting, its value and the range."""
        check_range(
            "kv_cache_free_gpu_memory_fraction", self.kv_cache_free_gpu_memory_fraction, above=0.0, at_most=0.99
        )
        for name in ("kv_cache_max_tokens", "max_batch_size", "max_num_tokens", "max_queue_size"):
            check_range(name, getattr(self, name), at_least=1)
        check_range("kv_cache_host_bytes", self.kv_cache_host_bytes, at_least=0)
        check_range("cuda_graph_cache_size", self.cuda_graph_cache_size, at_least=0)
        if self.scheduler_policy == "max_utilization" and not self.chunked_context:
            raise InvalidArgument(
                "scheduler_policy is max_utilization, it needs chunked_context: a paused stream is read again in pieces"
            )
        if self.cuda_graph_cache_size > 0 and not self.cuda_graph_mode:
            raise InvalidArgument(
                f"cuda_graph_cache_size is {self.cuda_graph_cache_size}, without cuda_graph_mode it must be 0"
            )
