"""What the executor tells of its iterations, kept: it hands out each iteration's figures only once, none while idle,
and none after its shutdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class ExecutorStatistics:
    """The last figures known, and sums over all iterations seen. All zero before the first."""

    steps: int = 0
    active: int = 0
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    tokens_per_block: int = 0
    prefix_blocks_reused: int = 0
    prefix_blocks_missed: int = 0
    preemptions: int = 0

    def add(self, iterations: Sequence[Any]) -> None:
        """iterations: `IterationStats` in order, what `get_latest_iteration_stats` returned."""
        for iteration in iterations:
            if (inflight := iteration.inflight_batching_stats) is not None:
                self.preemptions += inflight.num_paused_requests
        if not iterations:
            return
        iteration = iterations[-1]
        self.steps = iteration.iter
        self.active = iteration.num_active_requests
        if (kv_cache := iteration.kv_cache_stats) is not None:
            self.kv_blocks_total = kv_cache.max_num_blocks
            self.kv_blocks_free = kv_cache.free_num_blocks
            self.tokens_per_block = kv_cache.tokens_per_block
            self.prefix_blocks_reused = kv_cache.reused_blocks  # both since the start
            self.prefix_blocks_missed = kv_cache.missed_blocks
