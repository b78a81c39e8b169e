"""Pairs of token and expert, sorted by expert on the device."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_runtime.kernels.gpu import routing
from mixtral_runtime.kernels.gpu.routing import route_pairs


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 90),
    count=st.integers(1, 9),
    tile_size=st.sampled_from([1, 4, 16]),
    only=st.integers(1, 9),
    data=st.data(),
)
def test_every_pair_is_in_one_tile_of_its_expert(
    tokens: int, count: int, tile_size: int, only: int, data: st.DataObject
) -> None:
    """However few of the experts are chosen."""
    top_k = data.draw(st.integers(1, count))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    experts = torch.randint(0, min(only, count), (tokens, top_k), generator=generator)
    found = route_pairs(experts, count, tile_size)
    chosen = experts.flatten().tolist()
    pairs = len(chosen)
    placed = []
    before = -1
    for tile, expert in enumerate(found.tile_experts.tolist()):
        if expert < 0:
            assert all(later < 0 for later in found.tile_experts.tolist()[tile:])
            break
        members = found.order[tile * tile_size : (tile + 1) * tile_size].tolist()
        real = [pair for pair in members if pair != pairs]
        assert real
        assert members == real + [pairs] * (tile_size - len(real))
        assert all(chosen[pair] == expert for pair in real)
        assert expert >= before
        before = expert
        placed += real
    # Each once, an expert's in their own order; and no tile more than they need.
    assert placed == sorted(range(pairs), key=lambda pair: chosen[pair])
    used = sum(expert >= 0 for expert in found.tile_experts.tolist())
    assert used == sum(-(-chosen.count(expert) // tile_size) for expert in range(count))


def test_more_pairs_than_are_sorted_at_a_time() -> None:
    experts = torch.randint(0, 8, (routing.MANY + 10, 2), generator=torch.Generator().manual_seed(1))
    found = route_pairs(experts, 8, 64)
    real = found.order[(found.tile_experts >= 0).repeat_interleave(64)]
    assert real[real < found.pairs].tolist() == experts.flatten().argsort(stable=True).tolist()
