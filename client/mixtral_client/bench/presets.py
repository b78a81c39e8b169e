"""Configurations named after public write-ups of serving Mixtral 8x7B, so that their measurements can be repeated.

Options on the command line replace what a preset says.
"""

from mixtral_client.bench.plan import BenchOptions, shape
from mixtral_client.bench.slo import parse_slo

PRESETS: dict[str, BenchOptions] = {
    # Baseten, December 2023: int8 on one A100, one request at a time.
    "baseten": BenchOptions(
        preset="baseten", shapes=(shape(512, 128),), concurrency=(1,), requests=50, warmup_requests=5
    ),
    # Fireworks, January 2024: token and request latency against requests per second.
    "fireworks": BenchOptions(
        preset="fireworks", shapes=(shape(1000, 50),), rates=(0.5, 1.0, 2.0, 4.0, 8.0), duration_s=60.0, warmup_s=5.0
    ),
    # FriendliAI, February 2024: Dolly prompts at rising Poisson rates, throughput under a latency limit. The write-up
    # does not state the limit as a number; this one is ours.
    "friendli": BenchOptions(
        preset="friendli",
        dolly_like=True,
        rates=(1.0, 2.0, 4.0, 8.0, 16.0),
        duration_s=60.0,
        warmup_s=5.0,
        slo=parse_slo("ttft_p90=1s,tpot_p90=100ms"),
    ),
    # NVIDIA's performance overview of TensorRT-LLM 0.17: output tokens per second at maximum load.
    "nvidia": BenchOptions(
        preset="nvidia",
        shapes=(
            shape(128, 128),
            shape(128, 2048),
            shape(128, 4096),
            shape(500, 2000),
            shape(1000, 1000),
            shape(2048, 128),
            shape(2048, 2048),
            shape(5000, 500),
            shape(20000, 2000),
        ),
        concurrency=("max",),
    ),
}
