"""What an engine accepts: the limits that the user gave, and defaults from the memory plan for the rest."""

from dataclasses import dataclass

from mixtral_build.fit import check_fits
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import Device
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import plan_memory

DEFAULT_QUEUE_SIZE = 256
CPU_SEQ_LEN = (
    4096  # on a GPU the paged KV cache makes the model's own limit free, and the cache takes what memory there is
)
TYPICAL_SEQUENCE = 1024  # tokens; a default batch is no larger than what the KV cache holds of these


@dataclass(frozen=True, slots=True)
class Preset:
    """max_batch_size: the most a default takes. max_num_tokens: of one step, on a GPU and on a CPU; long enough to
    keep the processor busy, short enough that running streams do not stutter while another prompt is read."""

    max_batch_size: int
    max_num_tokens: int
    cpu_num_tokens: int


# Within the ranges that NVIDIA's tuning guide gives for the two aims: batches of 8 to 32 and steps of 1,024 to 2,048
# tokens for latency, 256 to 512 and 4,096 to 8,192 for throughput.
PRESETS = {"latency": Preset(16, 2048, 512), "throughput": Preset(512, 8192, 2048)}


@dataclass(frozen=True, slots=True)
class LimitOverrides:
    """What the user gave; None takes the default."""

    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    max_queue_size: int | None = None


def plan_limits(
    config: CheckpointConfig, device: Device, given: LimitOverrides, preset: str = "latency"
) -> EngineLimits:
    """preset: one of PRESETS. Raises InvalidArgument when the model does not fit, or the given limits contradict it,
    the memory or each other."""
    chosen = PRESETS[preset]
    asked_batch = given.max_batch_size or chosen.max_batch_size
    default_tokens = chosen.max_num_tokens if device.is_gpu else chosen.cpu_num_tokens
    memory = plan_memory(config, device, given.max_num_tokens or default_tokens, asked_batch)
    check_fits(config, device, memory)
    max_seq_len = _max_seq_len(config, device, given.max_seq_len, memory.kv_tokens)
    max_input_len = given.max_input_len or max_seq_len - 1  # at least one token can be generated
    if max_input_len >= max_seq_len:
        raise InvalidArgument(f"max_input_len is {max_input_len}, it must be below max_seq_len, which is {max_seq_len}")
    max_batch_size = asked_batch
    if given.max_batch_size is None:
        while max_batch_size > max(1, memory.largest_batch(min(max_seq_len, TYPICAL_SEQUENCE))):
            max_batch_size //= 2
    max_num_tokens = given.max_num_tokens or max(default_tokens, max_batch_size)
    if max_num_tokens < max_batch_size:
        raise InvalidArgument(
            f"max_num_tokens is {max_num_tokens}, it must be at least max_batch_size, which is {max_batch_size}"
        )
    queue_size = DEFAULT_QUEUE_SIZE if given.max_queue_size is None else given.max_queue_size
    return EngineLimits(max_batch_size, max_input_len, max_seq_len, max_num_tokens, queue_size)


def _max_seq_len(config: CheckpointConfig, device: Device, given: int | None, kv_tokens: int) -> int:
    longest = config.max_position_embeddings
    if given is None:
        return min(longest, kv_tokens) if device.is_gpu else min(longest, kv_tokens, CPU_SEQ_LEN)
    if given > longest:
        raise InvalidArgument(f"max_seq_len is {given}, the model's limit is {longest}")
    if given > kv_tokens:
        raise InvalidArgument(
            f"max_seq_len is {given}, the KV cache that fits on {device.name} beside the weights has {kv_tokens} tokens"
        )
    return given
