"""Which tokens go to which expert: (token, expert) pairs ordered by expert, for products that read each expert once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW, MANY = 128, 1024  # pairs sorted at a time, of decoding and of prompts


@dataclass(frozen=True, slots=True)
class Routing:
    """Pair p is token p // top_k with its choice p % top_k.

    order: int32 [tiles * tile_size], pairs by expert, each expert's from a whole tile on and in their own order; what
    fills its last tile is `pairs`, which is no pair. tile_experts: int32 [tiles], -1 behind the last tile. How many
    tiles there are depends on the number of pairs alone; how many of them are used, on the device only.
    """

    order: Tensor
    tile_experts: Tensor
    pairs: int
    tile_size: int

    @property
    def tiles(self) -> int:
        return len(self.tile_experts)


def route_pairs(experts: Tensor, count: int, tile_size: int) -> Routing:
    """experts: int64 [tokens, top_k], from 0 to count - 1. tile_size: a power of two."""
    pairs = experts.numel()
    tiles = min(pairs // tile_size + count, pairs)
    order = torch.empty(tiles * tile_size, dtype=torch.int32, device=experts.device)
    tile_experts = torch.empty(tiles, dtype=torch.int32, device=experts.device)
    at_once = FEW if pairs <= FEW else MANY
    _sort[(1,)](
        experts.contiguous(),
        order,
        tile_experts,
        pairs,
        tiles,
        EXPERTS=triton.next_power_of_2(count),
        TILE=tile_size,
        AT_ONCE=at_once,
        num_warps=at_once // 128,
    )
    return Routing(order, tile_experts, pairs, tile_size)


@triton.jit(do_not_specialize=["pairs", "tiles"])
def _sort(
    experts,
    order,
    tile_experts,
    pairs,
    tiles,
    EXPERTS: tl.constexpr,
    TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Counting sort by one program: prefixes of a one-hot matrix say a pair's place among its expert's."""
    expert = tl.arange(0, EXPERTS)
    here = tl.arange(0, AT_ONCE)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, pairs, AT_ONCE):
        chosen = tl.load(experts + start + here, mask=start + here < pairs, other=-1)
        counts += tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), 0)
    used = (counts + TILE - 1) // TILE
    ends = tl.cumsum(used, 0)  # in tiles
    places = (ends - used) * TILE

    filler = tl.arange(0, TILE)
    fill_at = (places + counts)[:, None] + filler[None, :]
    tl.store(order + fill_at, pairs, mask=fill_at < (ends * TILE)[:, None])
    for start in range(0, tiles, AT_ONCE):
        tile = start + here
        owner = tl.sum((tile[:, None] >= ends[None, :]).to(tl.int32), 1)
        tl.store(tile_experts + tile, tl.where(tile < tl.sum(used), owner, -1), mask=tile < tiles)
    for start in range(0, pairs, AT_ONCE):
        chosen = tl.load(experts + start + here, mask=start + here < pairs, other=-1)
        is_chosen = (chosen[:, None] == expert[None, :]).to(tl.int32)
        place = tl.sum(is_chosen * (places[None, :] + tl.cumsum(is_chosen, 0) - 1), 1)
        tl.store(order + place, start + here, mask=start + here < pairs)
        places += tl.sum(is_chosen, 0)
