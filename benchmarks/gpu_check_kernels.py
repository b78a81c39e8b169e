"""Each family of kernels by itself, at the model's real shapes, beside float64 in plain PyTorch on the same device."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from gpu_check_model import Check
from gpu_model import RandomCheckpoint, config_of, random_model
from gpu_reference import attended, matrix, norm, one_expert, rotated, rounded_to_e4m3, split_heads
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.formats.fp8 import E4M3
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.attention import paged_attention
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.sequence import Sequence as EngineSequence
from mixtral_runtime.pytorch.weights import WeightLoader

# Results are bfloat16, which alone is an error of 0.002; experts round between their two products, too, and with FP8
# to E4M3, where a rounding that falls the other way is 6 % of a value.
LINEAR_LIMIT, EXPERTS_LIMIT, FP8_EXPERTS_LIMIT = 0.006, 0.01, 0.03
ATTENTION_LIMITS, NORM_LIMIT = {"16bit": 0.01, "fp8": 0.015}, 0.004
KV_SCALE = 0.03
ROUTED_LIMIT = 0.01  # share of tokens whose experts differ: those with two nearly equal ones
SAMPLED_STEPS = 3
SAMPLED_LIMIT = 0.02  # share of tokens: where a random number falls between two sums that are rounded otherwise
LAYER = "transformer.layers.0"
Span = tuple[int, int]  # tokens that are in the cache, and new ones


@torch.inference_mode()
def check_matrices(
    shape: CheckpointConfig, precision: str, device: torch.device, token_counts: Sequence[int]
) -> Iterator[Check]:
    """The largest error over all numbers of tokens, of each matrix and of the mixture of experts."""
    config = replace(config_of(shape, precision), num_hidden_layers=1)
    checkpoint = RandomCheckpoint(config, device)
    loader = WeightLoader(cast(Checkpoint, checkpoint), device, config.torch_dtype)
    for name in ("attention.qkv", "attention.dense"):
        linear, exact = loader.linear(f"{LAYER}.{name}"), matrix(checkpoint, f"{LAYER}.{name}")
        worst = 0.0
        for tokens in token_counts:
            x = _random(tokens, linear.in_features, config, device)
            worst = _larger(worst, error(linear(x), exact(x.double())))
        yield Check(f"{precision}: {name}, {_said(token_counts)} tokens", worst, LINEAR_LIMIT)
    head = loader.lm_head(config.torch_dtype)
    x = _random(max(token_counts[:4]), config.hidden_size, config, device)
    expected = matrix(checkpoint, "lm_head")(x.double())[:, : config.vocab_size]
    yield Check(f"{precision}: lm_head", error(head(x), expected), LINEAR_LIMIT)
    experts = loader.experts(f"{LAYER}.mlp")
    cases = [
        (
            _random(tokens, config.hidden_size, config, device),
            chosen,
            torch.rand(chosen.shape, device=device).softmax(-1),
        )
        for tokens in token_counts
        for chosen in _choices(config, tokens, device)
    ]
    found = [experts(*case) for case in cases]
    worst = 0.0
    for one, expected in zip(found, _experts(checkpoint, cases), strict=True):
        worst = _larger(worst, error(one, expected))
    limit = FP8_EXPERTS_LIMIT if precision == "fp8" else EXPERTS_LIMIT
    yield Check(f"{precision}: experts, {_said(token_counts)} tokens", worst, limit)


@torch.inference_mode()
def check_attention(
    shape: CheckpointConfig, kv_cache: str, device: torch.device, batches: Sequence[Sequence[Span]]
) -> Iterator[Check]:
    """batches: of (cached, new) tokens of each sequence, whose blocks are scattered."""
    config = replace(config_of(shape, "int8", kv_cache), num_hidden_layers=2)
    attention = paged_attention(config, device, config.torch_dtype)
    for spans in batches:
        worst = 0.0
        blocks = sum(blocks_for(before + new) for before, new in spans)
        scales = torch.full((2,), KV_SCALE, device=device) if kv_cache == "fp8" else None
        cache = KvCache(config, blocks, device, config.torch_dtype, scales)
        if kv_cache == "fp8":
            cache.storage.copy_(
                torch.randn(cache.storage.shape, device=device).div_(KV_SCALE).to(E4M3).view(torch.uint8)
            )
        else:
            cache.storage.normal_()
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).tolist()
        batch, tables = _batch(spans, order, device)
        width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_size
        qkv = _random(sum(new for _, new in spans), width, config, device)
        found = attention(1, qkv, cache, batch)
        row = 0
        for (before, new), table in zip(spans, tables, strict=True):
            expected = _attended(config, qkv[row : row + new], cache, table, before)
            worst = _larger(worst, error(found[row : row + new], expected))
            row += new
        said = f"{len(spans)} sequences, up to {max(map(sum, spans))} tokens, {max(new for _, new in spans)} new"
        yield Check(f"attention, {kv_cache} KV: {said}", worst, ATTENTION_LIMITS[kv_cache])


@torch.inference_mode()
def check_between(shape: CheckpointConfig, device: torch.device, token_counts: Sequence[int]) -> Iterator[Check]:
    """RMSNorm, the residual sum, and the router's choice, as a model of one layer holds them."""
    model = random_model(replace(config_of(shape, "16bit"), num_hidden_layers=1), device)
    ops, layer = model._ops, model._layers[0]
    weight, router = layer.post_layernorm, layer.router.dequantize(torch.float32)
    norms, sums, routed, shares = 0.0, 0.0, 0.0, 0.0
    for tokens in token_counts:
        x, y = (_random(tokens, shape.hidden_size, shape, device) for _ in range(2))
        norms = _larger(norms, error(ops.norm(x, weight), norm(x.double(), weight, shape.norm_epsilon)))
        total, normed = ops.add_norm(x, y, weight)
        sums = _larger(sums, error(total, x.double() + y.double()))
        sums = _larger(sums, error(normed, norm(total.double(), weight, shape.norm_epsilon)))
        chosen, weights = ops.route(x, model._routers[0])
        logits = x.double() @ router.double().T
        best = logits.topk(shape.moe.top_k, dim=-1).indices
        routed = _larger(routed, float((chosen != best).any(-1).double().mean()))
        shares = _larger(shares, error(weights, logits.gather(1, chosen).softmax(-1)))
    yield Check(f"norm, {_said(token_counts)} tokens", norms, NORM_LIMIT)
    yield Check("residual sum and its norm", sums, NORM_LIMIT)
    yield Check("router: tokens with other experts, share", routed, ROUTED_LIMIT)
    yield Check("router: the experts' weights", shares, NORM_LIMIT)


@torch.inference_mode()
def check_sampler(shape: CheckpointConfig, device: torch.device, rows: int) -> Iterator[Check]:
    """The same logits give the same tokens on the device and in plain PyTorch on the CPU, drawn or not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, shape.vocab_size, generator=generator) * 4
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=40),
        SamplingParams(temperature=1.2, top_p=0.9, repetition_penalty=1.2),
        SamplingParams(temperature=0.9, top_k=20, top_p=0.8, min_p=0.05, presence_penalty=0.5),
    ]
    prompts = [[int(one) for one in torch.randint(shape.vocab_size, (9,), generator=generator)] for _ in range(rows)]
    chosen = []
    for where in (device, torch.device("cpu")):
        sequences = [
            EngineSequence(i, Request(prompts[i], 8, replace(kinds[i % len(kinds)], seed=i)), None) for i in range(rows)
        ]
        sampler = Sampler(rows, shape.vocab_size, where)
        steps = []
        for step in range(SAMPLED_STEPS):
            tokens = sampler.sample(logits.roll(step, dims=1).to(where), sequences)
            sampler.append(tokens)
            steps.append(tokens.cpu())
            for sequence, token in zip(sequences, steps[-1].tolist(), strict=True):
                sequence.append(token, None, None)
        chosen.append(torch.stack(steps))
    differing = float((chosen[0] != chosen[1]).double().mean())
    yield Check(f"sampling: tokens other than the CPU's, {rows} rows, share", differing, SAMPLED_LIMIT)


def error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; NaN where anything is not finite."""
    return float((found.double() - expected).norm() / expected.norm())


def _larger(worst: float, found: float) -> float:
    return found if found != found or found > worst else worst  # NaN stays


def _said(token_counts: Sequence[int]) -> str:
    return f"{min(token_counts)} to {max(token_counts)}"


def _random(rows: int, width: int, config: CheckpointConfig, device: torch.device) -> Tensor:
    return torch.randn(rows, width, device=device).to(config.torch_dtype)


def _choices(config: CheckpointConfig, tokens: int, device: torch.device) -> Iterator[Tensor]:
    """[tokens, top_k]: at random, and all tokens the same experts, so that the others have none."""
    experts, top_k = config.moe.num_experts, config.moe.top_k
    yield torch.rand(tokens, experts, device=device).argsort(-1)[:, :top_k].contiguous()
    if tokens > 1:
        yield torch.arange(experts - 1, experts - 1 - top_k, -1, device=device).repeat(tokens, 1)


def _experts(checkpoint: RandomCheckpoint, cases: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """As `experts_output` of every case (x, chosen, shares), with one expert's weights in float64 at a time."""
    totals = [torch.zeros_like(x, dtype=torch.float64) for x, _, _ in cases]
    for expert in range(checkpoint.config.moe.num_experts):
        fc, proj = (matrix(checkpoint, f"{LAYER}.mlp.{name}", expert) for name in ("fc", "proj"))
        for total, (x, chosen, shares) in zip(totals, cases, strict=True):
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            total.index_add_(0, rows, shares[rows, places, None] * one_expert(fc, proj, x[rows].double()))
    return totals


def _batch(spans: Sequence[Span], order: list[int], device: torch.device) -> tuple[Batch, list[list[int]]]:
    builder, tables, first = BatchBuilder(), [], 0
    for before, new in spans:
        needed = blocks_for(before + new)
        tables.append(order[first : first + needed])
        builder.add([1] * new, before, tables[-1])
        first += needed
    return builder.build(device), tables


def _attended(config: CheckpointConfig, qkv: Tensor, cache: KvCache, table: list[int], before: int) -> Tensor:
    """qkv: [new, width] of one sequence; the keys and values before them are read as the cache holds them."""
    new = len(qkv)
    positions = torch.arange(before, before + new, device=qkv.device)
    queries, keys, values = split_heads(config, qkv.double())
    queries, keys = (rotated(one, positions, config.rotary_base) for one in (queries, keys))
    stored = cache.storage[1][:, table].flatten(1, 2)[:, :before]  # [2, before, kv_heads, head_size]
    if cache.scales is not None:
        stored = stored.view(E4M3).double() * KV_SCALE
        keys, values = (rounded_to_e4m3(one, KV_SCALE) for one in (keys, values))
    old_keys, old_values = stored.double()
    return attended(queries, torch.cat((old_keys, keys)), torch.cat((old_values, values)), positions)
