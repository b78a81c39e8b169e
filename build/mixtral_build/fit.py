"""Whether a model fits on a device, and the nearest thing that does."""

from collections.abc import Iterator
from dataclasses import replace

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import Mapping
from mixtral_runtime.devices import CARDS, GB, Device, supports_fp8
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.plan import MemoryPlan, model_size, paging, plan_memory, with_precision
from mixtral_runtime.tensor_names import checkpoint_format

TP_SIZES = (2, 4, 8)


def check_fits(config: CheckpointConfig, device: Device, plan: MemoryPlan) -> None:
    """Raises InvalidArgument with the figures and the alternatives when there is no room for weights, workspace and
    one block of KV cache."""
    if sentence := misfit(config, device, plan):
        raise InvalidArgument(sentence)


def misfit(config: CheckpointConfig, device: Device, plan: MemoryPlan) -> str | None:
    """What does not fit and what would, one sentence, or None. Weights that a CPU reads from the disk are no misfit."""
    if plan.kv_tokens > 0:
        return None
    needs = (
        f"{checkpoint_format(config).name} weights of {plan.weights / GB:.1f} GB and {plan.workspace / GB:.1f} GB of "
        f"workspace leave no room for a KV cache in the {plan.memory / GB:.0f} GB of {device.name}"
    )
    options = list(alternatives(config, device))
    return f"{needs}; what fits: {', '.join(options)}" if options else f"{needs}; it needs more memory"


def paged(config: CheckpointConfig, device: Device, plan: MemoryPlan, disk: float) -> str | None:
    """What it means that mapped weights are larger than a CPU's memory, one sentence, or None. disk: what it reads, in
    bytes per second."""
    if device.is_gpu or plan.kv_tokens == 0 or (found := paging(model_size(config), plan)) is None:
        return None
    least, most = found
    sentence = (
        f"{checkpoint_format(config).name} weights of {plan.weights / GB:.1f} GB have no room in the "
        f"{plan.memory / GB:.0f} GB of {device.name}: the engine runs from the disk, slowly; every token at batch 1 "
        f"reads {least / GB:.1f} to {most / GB:.1f} GB, {least / disk:.1f} to {most / disk:.1f} s at the "
        f"{disk / GB:.2f} GB/s measured here"
    )
    other = _largest_precision(config, device)
    return f"{sentence}; what fits: --precision {other}" if other else sentence


def alternatives(config: CheckpointConfig, device: Device) -> Iterator[str]:
    """The nearest first: the largest other precision on this device, the smallest card for this precision, and how
    many such devices share it."""
    if other := _largest_precision(config, device):
        yield f"--precision {other} on {device.name}"
    precision = checkpoint_format(config).name
    for card in sorted(CARDS.values(), key=lambda card: card.memory):
        if card.memory > device.memory and _fits(config, card):
            yield f"--precision {precision} on {card.name}"
            break
    if device.is_gpu and (size := _smallest_group(config, device)):
        yield f"--precision {precision} on {size} x {device.name} (--tp-size {size})"


def _largest_precision(config: CheckpointConfig, device: Device) -> str | None:
    plain = replace(config, mapping=Mapping())
    fitting = []
    for precision in FORMATS:
        candidate = with_precision(plain, precision)
        if _fits(candidate, device):
            fitting.append((model_size(candidate).weights, precision))
    return max(fitting)[1] if fitting else None


def _smallest_group(config: CheckpointConfig, device: Device) -> int | None:
    for size in TP_SIZES:
        divides = config.num_key_value_heads % size == 0 and config.intermediate_size % size == 0
        if divides and _fits(replace(config, mapping=Mapping.tensor_parallel(size)), device):
            return size
    return None


def _fits(config: CheckpointConfig, device: Device) -> bool:
    if config.quantization.quant_algo == "FP8" and not supports_fp8(device):
        return False
    try:
        plan = plan_memory(config, device, max_num_tokens=2048, max_batch_size=1)
        return plan.kv_tokens > 0 and plan.missing == 0
    except InvalidArgument:  # the format does not take matrices of this shape
        return False
