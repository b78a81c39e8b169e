"""What a model will cost at a precision on a device, and each step on the way, from its config alone."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtral_build.conversion_cost import Step, conversion_steps
from mixtral_build.fit import misfit, paged
from mixtral_build.hf_checkpoint import INDEX_NAME, SINGLE_NAME
from mixtral_build.limits import PRESETS
from mixtral_build.machine_speed import MachineSpeed, measure_speed
from mixtral_build.trtllm_command import check_combination
from mixtral_runtime.checkpoint import CONFIG_NAME, read_config
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import GB, Device, fp8_conversion
from mixtral_runtime.errors import CheckpointError, InvalidArgument
from mixtral_runtime.plan import (
    MemoryPlan,
    ModelSize,
    decode_floor_s,
    model_size,
    plan_memory,
    prefill_floor_s,
    with_precision,
)
from mixtral_runtime.tensor_names import checkpoint_format

PROMPT_TOKENS = 512  # of the prompt whose floor is shown
CONTEXTS = (2048, 8192, 32768)
BATCHES = (1, 8, 64)
KIB = 2**10


@dataclass(frozen=True, slots=True)
class Plan:
    """memory: at `max_num_tokens` a step and `max_batch_size` sequences. misfit: what does not fit and the nearest
    thing that does, None when all fits. paged: what it costs that a CPU reads weights from the disk, None when it need
    not. converted: what it means that a card without FP8 arithmetic runs FP8, None where it has it or need not."""

    config: CheckpointConfig
    device: Device
    size: ModelSize
    memory: MemoryPlan
    max_num_tokens: int
    max_batch_size: int
    speed: MachineSpeed
    steps: list[Step]
    misfit: str | None
    paged: str | None
    converted: str | None

    def to_json(self) -> dict[str, Any]:
        """Bytes and seconds throughout."""
        prefill = prefill_floor_s(self.config, self.size, self.device, PROMPT_TOKENS)
        longest = self.config.max_position_embeddings
        return {
            "precision": checkpoint_format(self.config).name,
            "kv_cache": self.config.kv_cache_dtype,
            "dtype": self.config.dtype,
            "device": asdict(self.device),
            "size": asdict(self.size),
            "memory": asdict(self.memory),
            "max_num_tokens": self.max_num_tokens,
            "max_batch_size": self.max_batch_size,
            "largest_batch": {str(n): self.memory.largest_batch(n) for n in CONTEXTS if n <= longest},
            "largest_context": {str(n): min(longest, self.memory.largest_context(n)) for n in BATCHES},
            "decode_floor_s": decode_floor_s(self.size, self.device),
            "prefill_floor_s": None if prefill is None else max(prefill),
            "speed": asdict(self.speed),
            "steps": [asdict(step) for step in self.steps],
            "fits": self.misfit is None,
            "misfit": self.misfit,
            "paged": self.paged,
            "converted": self.converted,
        }


def read_model_config(model: Path, dtype: str | None = None) -> CheckpointConfig:
    """model: a Hugging Face model's directory or its config.json alone. Raises CheckpointError for anything else."""
    path = model / CONFIG_NAME if model.is_dir() else model
    if path.name != CONFIG_NAME:
        raise CheckpointError(f"{model} is neither a directory nor a {CONFIG_NAME}")
    try:
        return CheckpointConfig.from_hf(read_config(path.parent), dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def make_plan(
    model: Path,
    precision: str,
    device: Device,
    *,
    kv_cache: str | None = None,
    context: int | None = None,
    batch: int | None = None,
    calibration_tokens: int | None = None,
    work_dir: Path,
) -> Plan:
    """model: as in `read_model_config`. kv_cache: as in `with_precision`. context, batch: what must fit, None for any.
    calibration_tokens: None for those of the text that ships with this. work_dir: where checkpoints will be written;
    its disk is measured.

    Raises CheckpointError for what is not a Mixtral, InvalidArgument for a context that the model does not have.
    """
    config = with_precision(read_model_config(model), precision, kv_cache)
    if context is not None and context > config.max_position_embeddings:
        raise InvalidArgument(f"the context is {context}, the model's limit is {config.max_position_embeddings}")
    preset = PRESETS["throughput"]
    max_num_tokens = preset.max_num_tokens if device.is_gpu else preset.cpu_num_tokens
    max_batch_size = batch or 64
    size, memory = model_size(config), plan_memory(config, device, max_num_tokens, max_batch_size)
    speed = measure_speed(checkpoint_format(config), config.torch_dtype, work_dir, _shard(model))
    steps = conversion_steps(
        config,
        size,
        speed,
        calibration_tokens=calibration_tokens,
        tensorrt_llm=_tensorrt_llm_builds(config, device),
    )
    problem = misfit(config, device, memory) or _too_long(memory, device, context, batch)
    slow = paged(config, device, memory, speed.read)
    converted = fp8_conversion(device) if config.uses_fp8 else None
    return Plan(config, device, size, memory, max_num_tokens, max_batch_size, speed, steps, problem, slow, converted)


def plan_table(plan: Plan) -> Iterator[str]:
    """The plan for a reader, line by line."""
    config, device, size, memory = plan.config, plan.device, plan.size, plan.memory
    name = checkpoint_format(config).name
    yield f"{name} weights, {config.kv_cache_dtype} KV cache, on {device.name} with {memory.memory / GB:.1f} GB"
    yield ""
    rows = [
        ("weights", f"{size.weights / GB:.2f} GB", f"{size.parameters / 1e9:.2f} billion parameters"),
        ("workspace", f"{memory.workspace / GB:.2f} GB", f"{plan.max_num_tokens} tokens a step, estimated"),
        ("KV cache", f"{size.kv_bytes_per_token / KIB:.0f} KiB a token", f"{memory.kv_tokens} tokens fit"),
    ]
    longest = config.max_position_embeddings
    rows += [("", f"{memory.largest_batch(n)} sequences", f"of {n} tokens at once") for n in CONTEXTS if n <= longest]
    rows += [("", f"{min(longest, memory.largest_context(n))} tokens", f"each, {n} at once") for n in BATCHES]
    decode, prefill = decode_floor_s(size, device), prefill_floor_s(config, size, device, PROMPT_TOKENS)
    if decode is not None:
        rows.append(("decode", f"{decode * 1e3:.1f} ms a token", f"at least, {1 / decode:.0f} tokens/s at batch 1"))
    if prefill is not None:
        rows.append(
            ("prefill", f"{max(prefill) * 1e3:.0f} ms", f"at least, {PROMPT_TOKENS} tokens in 16-bit arithmetic")
        )
    for label, value, remark in rows:
        yield f"{label:<10} {value:>18}  {remark}".rstrip()
    yield ""
    yield f"{'step':<24} {'disk':>10} {'memory':>10} {'time':>10}"
    for step in plan.steps:
        time = "-" if step.seconds is None else show_seconds(step.seconds)
        line = f"{step.name:<24} {show_bytes(step.disk):>10} {show_bytes(step.memory):>10} {time:>10}  {step.note}"
        yield line.rstrip()


def show_bytes(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB"


def show_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _too_long(memory: MemoryPlan, device: Device, context: int | None, batch: int | None) -> str | None:
    """Whether what was asked for exceeds the KV cache."""
    if context is None or memory.largest_batch(context) >= (batch or 1):
        return None
    sequences = f"{batch or 1} sequences of {context} tokens"
    nearest = [f"{memory.largest_context(batch or 1)} tokens each"]
    if most := memory.largest_batch(context):
        nearest.append(f"{most} sequences")
    return (
        f"{sequences} need more KV cache than the {memory.kv_tokens} tokens that fit on {device.name}; "
        f"what fits: {' or '.join(nearest)}"
    )


def _shard(model: Path) -> Path | None:
    """One file of the weights, from the middle, where they are there."""
    directory = model if model.is_dir() else model.parent
    shards = sorted(directory.glob("*.safetensors"))
    known = (directory / INDEX_NAME).is_file() or (directory / SINGLE_NAME).is_file()
    return shards[len(shards) // 2] if known and shards else None


def _tensorrt_llm_builds(config: CheckpointConfig, device: Device) -> bool:
    try:
        check_combination(config, device)
    except InvalidArgument:
        return False
    return True
