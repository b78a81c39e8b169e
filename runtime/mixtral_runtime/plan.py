"""How much memory a model takes and what is left for the KV cache: arithmetic on the config, nothing is loaded.

The same figures serve `mixtral-build plan`, the default limits of an engine, and the KV cache when an engine loads.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.config_parts import QuantConfig
from mixtral_runtime.devices import GB, Device
from mixtral_runtime.formats import get_format
from mixtral_runtime.tensor_names import checkpoint_format, weight_specs, weights

TOKENS_PER_BLOCK = 32  # of the KV cache, in both runtimes
KV_CACHE_DTYPES = ("16bit", "fp8")
# Of the memory that weights and workspace leave. A GPU serves the engine alone; a CPU's memory is also the page cache
# that the mapped weights live in.
KV_FRACTION = {"cpu": 0.5, "gpu": 0.9}
# Of a CPU's whole memory, however large the weights are: those that do not fit are read from the disk again and again,
# and a KV cache of this size makes that hardly slower.
KV_FRACTION_BESIDE_PAGES = 0.125
# What is there before the first token: driver context, kernels and library handles, and in the PyTorch runtime one
# expert's matrix dequantised; on a CPU the interpreter and PyTorch.
BASE_WORKSPACE = {"cpu": GB // 2, "gpu": 2 * GB}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """parameters: all. active_parameters: those that one token is multiplied with, its top_k experts and lm_head
    included, the embedding (a look-up) not. The bytes are those of one rank: weights: all its tensors; active_weights:
    what one token reads of them; kv_bytes_per_token: all layers."""

    parameters: int
    active_parameters: int
    weights: int
    active_weights: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one device. kv_tokens: how many tokens of KV cache fit beside weights and workspace, 0 when these alone
    are too much. On a CPU the weights may be: see `paging`."""

    memory: int
    weights: int
    workspace: int
    kv_bytes_per_token: int
    kv_tokens: int

    @property
    def missing(self) -> int:
        """Bytes by which weights and workspace exceed the memory, 0 when they fit."""
        return max(0, self.weights + self.workspace - self.memory)

    def largest_batch(self, context: int) -> int:
        """Sequences of `context` tokens that the KV cache holds at once."""
        return self.kv_tokens // (blocks_for(context) * TOKENS_PER_BLOCK)

    def largest_context(self, batch: int) -> int:
        """Tokens that each of `batch` sequences may have."""
        return self.kv_tokens // TOKENS_PER_BLOCK // batch * TOKENS_PER_BLOCK


def with_precision(config: CheckpointConfig, precision: str, kv_cache: str | None = None) -> CheckpointConfig:
    """The config of the checkpoint that `--precision` and `--kv-cache` would make. kv_cache: one of KV_CACHE_DTYPES,
    None for what goes with the precision: fp8 with fp8 weights, else 16bit. Raises InvalidArgument for a precision
    that is not known."""
    weight_format = get_format(precision)
    fields: dict[str, Any] = dict(weight_format.quantization)
    fields["kv_cache_quant_algo"] = "FP8" if (kv_cache or default_kv_cache(precision)) == "fp8" else None
    return replace(config, quantization=QuantConfig(**fields), layout=weight_format.layout)


def default_kv_cache(precision: str) -> str:
    return "fp8" if precision == "fp8" else "16bit"


def blocks_for(tokens: int) -> int:
    return -(-tokens // TOKENS_PER_BLOCK)


def kv_bytes_per_token(config: CheckpointConfig, itemsize: int) -> int:
    """Keys and values of all layers on one rank. itemsize: bytes of one element."""
    heads = config.num_key_value_heads // config.mapping.tp_size
    return 2 * config.num_hidden_layers * heads * config.head_size * itemsize


def kv_budget(free: int, weights: int, *, is_gpu: bool) -> int:
    """Bytes that the KV cache may take. free: what there is for weights and KV cache together. A GPU must hold all the
    weights; a CPU's are mapped, and what of them has no room stays on the disk."""
    if is_gpu:
        return int(max(0, free - weights) * KV_FRACTION["gpu"])
    return int(max((free - weights) * KV_FRACTION["cpu"], free * KV_FRACTION_BESIDE_PAGES, 0))


def model_size(config: CheckpointConfig) -> ModelSize:
    """Of the checkpoint with this config, scales included."""
    weight_format, tp_size = checkpoint_format(config), config.mapping.tp_size
    parameters = active_parameters = stored = active_stored = 0
    for weight in weights(config):
        specs = weight_specs(weight, weight_format, tp_size)
        count, size = math.prod(weight.shape), sum(spec.nbytes for spec in specs)
        parameters, stored = parameters + count, stored + size
        if weight.name.endswith("vocab_embedding.weight"):
            continue
        used, of = (config.moe.top_k, config.moe.num_experts) if weight.stacked else (1, 1)
        active_parameters += count * used // of
        active_stored += size * used // of
    itemsize = 1 if config.quantization.kv_cache_quant_algo else config.torch_dtype.itemsize
    return ModelSize(parameters, active_parameters, stored, active_stored, kv_bytes_per_token(config, itemsize))


def step_bytes(config: CheckpointConfig, max_num_tokens: int, max_batch_size: int) -> int:
    """An estimate of one step's activations and logits.

    Per token: in each chosen expert its copy of the input, both halves of the gated activation, their product and the
    output; queries, keys and values; the residual stream and three tensors like it. Per sequence: its logits, twice in
    float32, because sampling copies them.
    """
    hidden, inner, itemsize = config.hidden_size, config.intermediate_size, config.torch_dtype.itemsize
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_size
    per_token = itemsize * (config.moe.top_k * (3 * inner + 2 * hidden) + qkv + 4 * hidden)
    return max_num_tokens * per_token + max_batch_size * config.vocab_size * 4 * 2


def workspace_bytes(config: CheckpointConfig, device: Device, max_num_tokens: int, max_batch_size: int) -> int:
    """Everything but weights and KV cache."""
    base = BASE_WORKSPACE["gpu" if device.is_gpu else "cpu"]
    return base + step_bytes(config, max_num_tokens, max_batch_size)


def plan_memory(config: CheckpointConfig, device: Device, max_num_tokens: int, max_batch_size: int) -> MemoryPlan:
    size = model_size(config)
    workspace = workspace_bytes(config, device, max_num_tokens, max_batch_size)
    budget = kv_budget(device.memory - workspace, size.weights, is_gpu=device.is_gpu)
    blocks = budget // (size.kv_bytes_per_token * TOKENS_PER_BLOCK)
    return MemoryPlan(device.memory, size.weights, workspace, size.kv_bytes_per_token, blocks * TOKENS_PER_BLOCK)


def paging(size: ModelSize, plan: MemoryPlan) -> tuple[int, int] | None:
    """Bytes of weights that a token at batch 1 reads from the disk when they are mapped and have no room in the memory:
    with the best choice of what stays, and with the worst, which is none of what the next token needs. None when all
    have room."""
    room = plan.memory - plan.workspace - plan.kv_tokens * plan.kv_bytes_per_token
    if room >= size.weights:
        return None
    return int(size.active_weights * (1 - max(0, room) / size.weights)), size.active_weights


def decode_floor_s(size: ModelSize, device: Device) -> float | None:
    """Seconds of one token at batch 1 that reading its weights takes alone; None where the bandwidth is not known."""
    return None if device.bandwidth is None else size.active_weights / device.bandwidth


def prefill_flop(config: CheckpointConfig, size: ModelSize, tokens: int) -> int:
    """Multiplications and additions of a prompt: its linears, lm_head at every token, and full attention scores."""
    attention = 4 * tokens**2 * config.num_attention_heads * config.head_size * config.num_hidden_layers
    return 2 * size.active_parameters * tokens + attention


def prefill_floor_s(
    config: CheckpointConfig, size: ModelSize, device: Device, tokens: int
) -> tuple[float, float] | None:
    """Seconds of a prompt: the 16-bit arithmetic alone, and reading all the weights alone (a prompt of some length
    meets every expert). The larger is the floor when both overlap fully, the sum when not at all."""
    if device.bandwidth is None or device.flops is None:
        return None
    return prefill_flop(config, size, tokens) / device.flops, size.weights / device.bandwidth
