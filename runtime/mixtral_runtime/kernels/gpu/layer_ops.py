"""The small steps of a layer in one launch each: embedding lookup or residual sum, RMSNorm, router and its choice.

They move little memory, so their latency counts: one program per token, the whole row in registers, and the norm's and
the router's weights, which depend on nothing, loaded beside the row. The router's weights (64 KB of eight experts in
bfloat16) are read by every program: from the L2 cache by the first of a multiprocessor, from its L1 by the others.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_EXPERTS = 64  # logits in registers


@dataclass(frozen=True, slots=True)
class Config:
    """experts_at_once: router rows in registers together, a power of two."""

    warps: int
    experts_at_once: int


def config(hidden: int, routed: bool) -> Config:
    """8 values of a row per thread, what a 16-byte load of bfloat16 brings; the router's rows need as many each."""
    warps = min(16, max(1, triton.next_power_of_2(hidden) // 256))
    return Config(warps, experts_at_once=8 if routed else 1)


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm in float32. x: [tokens, hidden]; weight: [hidden] float32 -> [tokens, hidden] in x's dtype."""
    normed = torch.empty_like(x)
    _launch(x, None, None, weight, None, None, normed, None, epsilon)
    return normed


def embed_norm(
    token_ids: Tensor, embedding: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """token_ids: [tokens] int64; embedding: [vocab, hidden] -> its rows and their norm, [tokens, hidden] of dtype."""
    total = torch.empty(len(token_ids), embedding.shape[1], dtype=dtype, device=embedding.device)
    normed = torch.empty_like(total)
    _launch(embedding, None, token_ids, weight, None, total, normed, None, epsilon)
    return total, normed


def add_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x, y: [tokens, hidden] -> x + y rounded to their dtype, and its norm."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _launch(x, y, None, weight, None, total, normed, None, epsilon)
    return total, normed


def add_norm_route(
    x: Tensor, y: Tensor, weight: Tensor, router: Tensor, epsilon: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_norm` and what the router makes of the norm. router: [experts, hidden], 64 experts at most -> also experts
    [tokens, top_k] int64, best first, of equal logits the lower, and the softmax of their logits, float32."""
    total, normed = torch.empty_like(x), torch.empty_like(x)
    routed = _empty_routes(x, top_k)
    _launch(x, y, None, weight, router, total, normed, routed, epsilon)
    return total, normed, *routed


def route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The router alone: x is the norm already."""
    routed = _empty_routes(x, top_k)
    _launch(x, None, None, None, router, None, None, routed, 0.0)
    return routed


def compact(router: Tensor) -> Tensor:
    """The same numbers in bfloat16 or float16 where these hold them exactly, for half the bytes. Waits for the host:
    for weights, when they are loaded."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(router.to(dtype).to(router.dtype), router):
            return router.to(dtype)
    return router


def _empty_routes(x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    experts = torch.empty(len(x), top_k, dtype=torch.int64, device=x.device)
    return experts, torch.empty(len(x), top_k, dtype=torch.float32, device=x.device)


def _launch(
    x: Tensor,
    y: Tensor | None,
    token_ids: Tensor | None,
    weight: Tensor | None,
    router: Tensor | None,
    total: Tensor | None,
    normed: Tensor | None,
    routed: tuple[Tensor, Tensor] | None,
    epsilon: float,
) -> None:
    tokens, hidden = len(x if token_ids is None else token_ids), x.shape[1]
    experts = 0 if router is None else len(router)
    assert experts <= MAX_EXPERTS, experts
    assert all(one is None or one.is_contiguous() for one in (x, y, token_ids, weight, router))
    if not tokens:
        return
    tuned = config(hidden, router is not None)
    chosen, weights = routed if routed is not None else (None, None)
    _small_steps[(tokens,)](
        x,
        y,
        token_ids,
        weight,
        router,
        total,
        normed,
        chosen,
        weights,
        epsilon,
        HIDDEN=hidden,
        BLOCK=triton.next_power_of_2(hidden),
        EXPERTS=experts,
        EXPERTS_BLOCK=max(triton.next_power_of_2(experts), tuned.experts_at_once),
        AT_ONCE=tuned.experts_at_once,
        TOP_K=0 if chosen is None else chosen.shape[1],
        TOP_K_BLOCK=1 if chosen is None else triton.next_power_of_2(chosen.shape[1]),
        num_warps=tuned.warps,
    )


@triton.jit
def _small_steps(
    x_ptr,  # [tokens, HIDDEN], or the embedding where token_ids say which rows
    y_ptr,  # [tokens, HIDDEN] or None: nothing to add
    token_ids_ptr,  # [tokens] or None
    weight_ptr,  # [HIDDEN] or None: x is the norm
    router_ptr,  # [EXPERTS, HIDDEN] or None
    total_ptr,  # [tokens, HIDDEN] or None: not wanted
    normed_ptr,  # [tokens, HIDDEN] or None
    chosen_ptr,  # [tokens, TOP_K]
    weights_ptr,  # [tokens, TOP_K]
    epsilon,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    source = token
    if token_ids_ptr is not None:
        source = tl.load(token_ids_ptr + token)
    x = tl.load(x_ptr + source * HIDDEN + columns, mask=inside, other=0.0)
    if router_ptr is not None:  # on its way while the norm is computed
        tile = _router_rows(router_ptr, 0, columns, HIDDEN, EXPERTS, AT_ONCE)
    if y_ptr is not None:
        y = tl.load(y_ptr + token * HIDDEN + columns, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(x_ptr.dtype.element_ty)
    if total_ptr is not None:
        x = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + token * HIDDEN + columns, x, mask=inside)
    normed = x
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
        value = x.to(tl.float32)
        mean = tl.sum(value * value, axis=0) / HIDDEN
        normed = (value * tl.rsqrt(mean + epsilon) * weight).to(normed_ptr.dtype.element_ty)
        tl.store(normed_ptr + token * HIDDEN + columns, normed, mask=inside)
    if router_ptr is not None:
        row = normed.to(tl.float32)  # what the experts are given, rounded as theirs
        numbers = tl.arange(0, EXPERTS_BLOCK)
        logits = tl.zeros([EXPERTS_BLOCK], tl.float32)
        for first in tl.static_range(0, EXPERTS, AT_ONCE):
            if first > 0:
                tile = _router_rows(router_ptr, first, columns, HIDDEN, EXPERTS, AT_ONCE)
            part = tl.sum(tile.to(tl.float32) * row[None, :], axis=1)  # [AT_ONCE]
            repeated = tl.broadcast_to(part[None, :], [EXPERTS_BLOCK // AT_ONCE, AT_ONCE]).reshape([EXPERTS_BLOCK])
            logits = tl.where(numbers // AT_ONCE == first // AT_ONCE, repeated, logits)
        _choose(chosen_ptr + token * TOP_K, weights_ptr + token * TOP_K, logits, numbers, EXPERTS, TOP_K, TOP_K_BLOCK)


@triton.jit
def _router_rows(router_ptr, first, columns, HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, AT_ONCE: tl.constexpr):
    experts = first + tl.arange(0, AT_ONCE)
    inside = (experts < EXPERTS)[:, None] & (columns < HIDDEN)[None, :]
    return tl.load(router_ptr + experts[:, None] * HIDDEN + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _choose(
    chosen_ptr, weights_ptr, logits, numbers, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_K_BLOCK: tl.constexpr
):
    """Best first. NaN counts as the best, as where PyTorch sorts: an overflowed row has experts that exist."""
    free = numbers < EXPERTS
    order = tl.where(logits == logits, logits, float("inf"))
    places = tl.arange(0, TOP_K_BLOCK)
    chosen = tl.zeros([TOP_K_BLOCK], tl.int32)
    values = tl.full([TOP_K_BLOCK], float("-inf"), tl.float32)
    for place in tl.static_range(TOP_K):
        best = tl.max(tl.where(free, order, float("-inf")), axis=0)
        number = tl.min(tl.where(free & (order == best), numbers, EXPERTS), axis=0)
        value = tl.sum(tl.where(numbers == number, logits, 0.0), axis=0)
        chosen = tl.where(places == place, number, chosen)
        values = tl.where(places == place, value, values)
        free = free & (numbers != number)
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(chosen_ptr + places, chosen.to(tl.int64), mask=places < TOP_K)
    tl.store(weights_ptr + places, powers / tl.sum(powers, axis=0), mask=places < TOP_K)
