"""Times of the kernels by themselves, at the model's own shapes: what a tuner looks at.

Weights rotate over the model's layers, so that no cache holds them. A row's `share` is the bytes that it must move over
its time, of the copy bandwidth; `flops_share` its arithmetic, of the measured matrix product.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from gpu_figures import expected_experts
from gpu_timing import Timing, time_calls
from torch import Tensor

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.attention import paged_attention
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.tensor_names import checkpoint_format, weight_specs, weights

Call = Callable[[], object]
FEW_TOKENS = 64  # up to which a call is so short that all layers take turns
LAYERS_FOR_MANY = 4
EXPERT_LAYERS = 8
ROTATED_BYTES = 2 << 30  # of KV cache, in as many layers as that takes: far more than any cache of a chip
MAX_KV_LAYERS = 128


@dataclass(frozen=True, slots=True)
class KernelFigures:
    """kernel: qkv, dense, experts, lm_head, or a step of a layer between them. bytes: of weights and activations;
    flop: multiplications and additions."""

    kernel: str
    tokens: int
    seconds: float
    graph: bool
    bytes: float
    flop: float


@dataclass(frozen=True, slots=True)
class AttentionFigures:
    """Of one layer. query: new tokens of each sequence. bytes: keys, values, queries and output."""

    kv_cache: str
    batch: int
    context: int
    query: int
    seconds: float
    graph: bool
    bytes: float
    flop: float


def matrix_bytes(config: CheckpointConfig) -> dict[str, int]:
    """Of layer 0's quantised weights and of lm_head, scales included, by the last part of their names."""
    weight_format = checkpoint_format(config)
    found = {}
    for weight in weights(config):
        if ".layers." in weight.name and ".layers.0." not in weight.name:
            continue
        name = weight.name.removesuffix(".weight").rsplit(".", 1)[-1]
        found[name] = sum(spec.nbytes for spec in weight_specs(weight, weight_format))
    return found


@torch.inference_mode()
def measure_matrices(model: MixtralModel, token_counts: Sequence[int], for_s: float) -> Iterator[KernelFigures]:
    """Every matrix of a layer, and lm_head, for each number of tokens."""
    config, device = model.config, model.device
    sizes = matrix_bytes(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    itemsize = model.dtype.itemsize
    for tokens in token_counts:
        layers = model._layers if tokens <= FEW_TOKENS else model._layers[:LAYERS_FOR_MANY]
        x = torch.randn(tokens, hidden, device=device).to(model.dtype)
        attended = torch.randn(tokens, layers[0].dense.in_features, device=device).to(model.dtype)
        for name, argument in (("qkv", x), ("dense", attended)):
            linears = [getattr(layer, name) for layer in layers]
            out = linears[0].out_features
            timing = time_calls([_bound(linear, argument) for linear in linears], device, for_s)
            width = argument.shape[1]
            moved = sizes[name] + tokens * (width + out) * itemsize
            yield _figures(name, tokens, timing, moved, 2.0 * tokens * width * out)
        routed = _random_routes(config, tokens, device)
        calls = [_bound(layer.experts, x, *routed) for layer in layers[:EXPERT_LAYERS]]
        met = _distinct(routed[0])
        share = met / config.moe.num_experts
        moved = (sizes["fc"] + sizes["proj"]) * share + 2 * tokens * hidden * itemsize
        flop = 2.0 * tokens * config.moe.top_k * 3 * hidden * inner
        yield _figures("experts", tokens, time_calls(calls, device, for_s), moved, flop)
        timing = time_calls([_bound(model.logits, x)], device, for_s)
        moved = sizes["lm_head"] + tokens * (hidden * itemsize + config.vocab_size * 4)
        yield _figures("lm_head", tokens, timing, moved, 2.0 * tokens * hidden * config.vocab_size)


@torch.inference_mode()
def measure_between(model: MixtralModel, token_counts: Sequence[int], for_s: float) -> Iterator[KernelFigures]:
    """The steps between the matrices of a layer."""
    hidden, itemsize, experts = model.config.hidden_size, model.dtype.itemsize, model.config.moe.num_experts
    for tokens in token_counts:
        x = torch.randn(tokens, hidden, device=model.device).to(model.dtype)
        calls = [_bound(model._ops.add_norm, x, x, layer.post_layernorm) for layer in model._layers]
        yield _figures("add_norm", tokens, time_calls(calls, model.device, for_s), 4 * tokens * hidden * itemsize, 0.0)
        paired = list(zip(model._layers, model._routers, strict=True))
        calls = [_bound(model._ops.add_norm_route, x, x, layer.post_layernorm, router) for layer, router in paired]
        moved = hidden * (4 * experts + 4 * tokens * itemsize)
        yield _figures("add_norm_route", tokens, time_calls(calls, model.device, for_s), moved, 0.0)


@torch.inference_mode()
def measure_attention(
    config: CheckpointConfig,
    device: torch.device,
    cases: Sequence[tuple[int, int, int]],
    for_s: float,
    memory: int,
) -> Iterator[AttentionFigures]:
    """cases: (sequences, context, new tokens of each). memory: bytes of KV cache that may be taken; cases that need
    more are left out. Rotary embedding and the writing of the new keys and values are part of it."""
    dtype = config.torch_dtype
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_size
    itemsize = 1 if config.quantization.kv_cache_quant_algo else dtype.itemsize
    per_token = 2 * config.num_key_value_heads * config.head_size * itemsize
    for batch, context, query in cases:
        blocks = batch * blocks_for(context)
        one_layer = blocks * BLOCK_SIZE * per_token
        if one_layer > memory:
            continue
        count = max(1, min(MAX_KV_LAYERS, ROTATED_BYTES // one_layer))
        layers = replace(config, num_hidden_layers=count)
        scales = torch.full((count,), 0.02, device=device) if itemsize == 1 else None
        cache = KvCache(layers, blocks, device, dtype, scales)
        _fill(cache)
        attention = paged_attention(layers, device, dtype)
        built = attention_batch(config, batch, context, query, device)
        qkv = torch.randn(batch * query, width, device=device).to(dtype)
        timing = time_calls([_bound(attention, layer, qkv, cache, built) for layer in range(count)], device, for_s)
        outputs = config.num_attention_heads * config.head_size
        moved = batch * context * per_token + batch * query * (width + outputs) * dtype.itemsize
        pairs = batch * (query * (context - query) + query * (query + 1) / 2)
        flop = 4.0 * pairs * config.num_attention_heads * config.head_size
        kept = "fp8" if itemsize == 1 else "16bit"
        yield AttentionFigures(kept, batch, context, query, timing.seconds, timing.graph, moved, flop)
        del cache, attention


def attention_batch(config: CheckpointConfig, batch: int, context: int, query: int, device: torch.device) -> Batch:
    """`batch` sequences whose last `query` of `context` tokens are new, their blocks scattered."""
    per_sequence = blocks_for(context)
    order = torch.randperm(batch * per_sequence, generator=torch.Generator().manual_seed(0)).tolist()
    builder = BatchBuilder()
    for i in range(batch):
        builder.add([1] * query, context - query, order[i * per_sequence : (i + 1) * per_sequence])
    return builder.build(device)


def _fill(cache: KvCache) -> None:
    """Random finite values, a layer at a time."""
    for layer in cache.storage:
        if layer.dtype is torch.uint8:
            layer.random_(0, 127).bitwise_or_(torch.randint_like(layer, 0, 2).mul_(128))  # 127 is not a number
        else:
            layer.normal_()


def _random_routes(config: CheckpointConfig, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Each token's experts, different ones, at random but the same in every run, and equal weights. Among several such
    choices the one that meets as many experts as tokens do on average."""
    generator = torch.Generator().manual_seed(tokens)
    experts, top_k = config.moe.num_experts, config.moe.top_k
    drawn = [
        torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]) for _ in range(8)
    ]
    average = expected_experts(config, tokens)
    chosen = min(drawn, key=lambda one: abs(_distinct(one) - average))
    return chosen.to(device), torch.full((tokens, top_k), 1 / top_k, device=device)


def _distinct(chosen: Tensor) -> int:
    return len(set(chosen.flatten().tolist()))


def _figures(kernel: str, tokens: int, timing: Timing, moved: float, flop: float) -> KernelFigures:
    return KernelFigures(kernel, tokens, timing.seconds, timing.graph, moved, flop)


def _bound(function: Callable[..., object], *arguments: object) -> Call:
    return lambda: function(*arguments)
