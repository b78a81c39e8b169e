"""What each step from a Hugging Face model to an engine costs: disk, memory and time, before any of them runs."""

import math
from dataclasses import dataclass

from mixtral_build.awq_search import ALPHAS, COMPARED_ROWS, KEPT_ROWS
from mixtral_build.layerwise import CHUNK_TOKENS, SPILL_BYTES
from mixtral_build.machine_speed import MachineSpeed
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import Format
from mixtral_runtime.formats.awq import Awq
from mixtral_runtime.formats.dense import Dense
from mixtral_runtime.formats.fp8 import Fp8
from mixtral_runtime.plan import ModelSize
from mixtral_runtime.tensor_names import Weight, checkpoint_format, expected_specs, weights

# Anonymous memory of the process before it has read a weight: the interpreter and PyTorch, and with a tokenizer for
# calibration transformers.
PROCESS_BYTES = 160 << 20
TOKENIZER_BYTES = 100 << 20
START_S, TOKENIZER_START_S = 2.0, 3.0  # until they are imported
BYTES_PER_TOKEN = 4  # of English text, about


@dataclass(frozen=True, slots=True)
class Step:
    """disk: bytes it writes beside what is there. memory: the most anonymous memory it has at once, mapped files not
    counted, because they give way. seconds: None where nothing that was measured here tells; then `note` says why."""

    name: str
    disk: int
    memory: int
    seconds: float | None
    note: str = ""


def conversion_steps(
    config: CheckpointConfig,
    size: ModelSize,
    speed: MachineSpeed,
    *,
    calibration_tokens: int | None,
    tensorrt_llm: bool,
) -> list[Step]:
    """config: of the checkpoint to be made, from a model in 16 bit. calibration_tokens: of all samples together,
    None for those of the text that ships with this. tensorrt_llm: whether that runtime can build this engine."""
    weight_format = checkpoint_format(config)
    source_bytes = 2 * size.parameters
    checkpoint_bytes = config.mapping.world_size * sum(spec.nbytes for spec in expected_specs(config))
    steps = []
    if isinstance(weight_format, Fp8 | Awq) or config.quantization.kv_cache_quant_algo is not None:
        steps.append(_calibration(config, size, speed, source_bytes, calibration_tokens or _shipped_tokens()))
    # The next weights are read while the current ones are worked on.
    work_s = source_bytes / speed.quantize + checkpoint_bytes / speed.write
    quantize_s = START_S + max(source_bytes / speed.read, work_s)
    steps.append(Step("quantize", checkpoint_bytes, _quantize_memory(config, weight_format), quantize_s))
    pack_s = START_S + checkpoint_bytes / speed.checksum
    steps.append(Step("engine for pytorch", 0, PROCESS_BYTES, pack_s, "weights are linked; elsewhere they are copied"))
    if tensorrt_llm:
        note = "memory is a guess; time is not predicted: TensorRT tries its kernels on the GPU"
        steps.append(Step("engine for tensorrt-llm", checkpoint_bytes, 2 * checkpoint_bytes, None, note))
    return steps


def _calibration(
    config: CheckpointConfig, size: ModelSize, speed: MachineSpeed, source_bytes: int, tokens: int
) -> Step:
    """One pass over the model. Its weights stay in the mapped files; a chunk of activations and the states of all
    samples do not."""
    hidden, inner, itemsize = config.hidden_size, config.intermediate_size, config.torch_dtype.itemsize
    states = tokens * hidden * itemsize
    chunk = min(tokens, CHUNK_TOKENS)
    # Of the busiest expert, which may get every token: both halves, the gate's activation, their product; and the
    # outputs of all chosen experts, in 16 bit and in float32.
    activations = chunk * itemsize * (5 * inner + 4 * hidden) + chunk * config.moe.top_k * hidden * (itemsize + 4)
    memory = PROCESS_BYTES + TOKENIZER_BYTES + activations + min(states, SPILL_BYTES)
    seconds = TOKENIZER_START_S + source_bytes / speed.read + 2 * size.active_parameters * tokens / speed.multiply
    if speed.search is not None:
        seconds += len(ALPHAS) * _searched_weights(config) / speed.search
        kept = config.moe.num_experts * KEPT_ROWS * (hidden + inner) * itemsize
        largest = 2 * inner * hidden * itemsize
        compared = min(COMPARED_ROWS * 2, 2 * inner) * max(hidden, inner) * 4 * 3
        memory += kept + largest + compared
    return Step("calibrate", states if states > SPILL_BYTES else 0, memory, seconds, f"{tokens} tokens")


def _shipped_tokens() -> int:
    from mixtral_build.calibration_data import DEFAULT_DATA  # transformers takes seconds to import

    return DEFAULT_DATA.stat().st_size // BYTES_PER_TOKEN


def _searched_weights(config: CheckpointConfig) -> int:
    """Of each matrix evenly spaced rows."""
    total = 0
    for weight in weights(config):
        if weight.quantized:
            rows, columns = weight.shape[-2:]
            compared = math.ceil(rows / max(1, rows // COMPARED_ROWS))
            total += len(weight.parts) * compared * columns
    return total


def _quantize_memory(config: CheckpointConfig, weight_format: Format) -> int:
    """Of the largest matrix of one expert, its parts joined in 16 bit, and what becomes of it; with several ranks, of
    which each takes its share, the parts once more."""
    return PROCESS_BYTES + max(_matrix_memory(weight, config, weight_format) for weight in weights(config))


def _matrix_memory(weight: Weight, config: CheckpointConfig, weight_format: Format) -> int:
    parameters = sum(math.prod(part.shape) for part in weight.parts[0])
    joined = parameters * weight.dtype.itemsize if len(weight.parts[0]) > 1 or weight.dtype.itemsize > 2 else 0
    if not weight.quantized:
        return joined
    # What the expert before it became is still there. 4-bit values are whole bytes until they are packed.
    if isinstance(weight_format, Dense):
        return 2 * joined
    return joined + parameters * (3 if isinstance(weight_format, Awq) else 2)
