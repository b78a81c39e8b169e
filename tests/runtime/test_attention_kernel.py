"""The attention kernel: exact within the dtype's rounding, and the same bits however a token came to be computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import KERNEL_PATHS, on_path, threads
from torch import Tensor

from mixtral_runtime.formats.fp8 import E4M3, to_e4m3
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE

CPU = torch.device("cpu")
# Relative to the largest value: queries, keys and weights are rounded to the dtype, sums are in float32.
TOLERANCE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2e-6}
HEADS = [  # head size, key heads, group; tiles of AMX take multiples of 32
    (32, 2, 1),
    (32, 1, 3),
    (64, 2, 4),
    (128, 2, 4),
    (128, 1, 8),
    (128, 1, 5),
    (16, 3, 2),
    (80, 2, 7),
]
# (start, end) of the tokens of each sequence: decodes and chunks before, on and after the edges of the tiles of 16 or
# 32 and of the partitions of 256 keys.
SPANS = [(0, 7), (100, 101), (255, 256), (256, 257), (300, 340), (0, 1), (0, 300), (600, 601), (530, 533)]
LAYER = 1


@pytest.fixture(params=KERNEL_PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_path(request.param):
        yield request.param


@dataclass(frozen=True)
class Case:
    """Queries of the spans, and a cache whose slots are NaN where no sequence wrote."""

    queries: Tensor
    storage: Tensor  # [layers, 2, blocks, BLOCK_SIZE, kv_heads, head_size]
    scales: Tensor | None
    tables: list[list[int]]
    spans: list[tuple[int, int]]

    def batch(self, spans: list[tuple[int, int]] | None = None) -> Batch:
        builder = BatchBuilder()
        for (start, end), table in zip(spans or self.spans, self.tables, strict=True):
            if start < end:
                builder.add([0] * (end - start), start, table)
        return builder.build(CPU)

    def attend(self, queries: Tensor, batch: Batch) -> Tensor:
        result: Tensor = torch.ops.mixtral_cpu.paged_attention(
            queries.contiguous(), self.storage, self.scales, LAYER, batch.span_table, batch.block_tables
        )
        return result


def make_case(
    head_size: int,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    *,
    fp8: bool = False,
    spans: list[tuple[int, int]] = SPANS,
) -> Case:
    random = torch.Generator().manual_seed(head_size + group)
    counts = [blocks_for(end) for _, end in spans]
    order = torch.randperm(sum(counts) + 3, generator=random).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    kept = torch.full((2, 2, sum(counts) + 3, BLOCK_SIZE, kv_heads, head_size), torch.nan)
    for table, (_, end) in zip(tables, spans, strict=True):
        for index, block in enumerate(table):
            kept[LAYER, :, block, : end - index * BLOCK_SIZE] = torch.randn(
                kept[LAYER, :, block, : end - index * BLOCK_SIZE].shape, generator=random
            )
    tokens = sum(end - start for start, end in spans)
    queries = (2 * torch.randn(tokens, kv_heads * group * head_size, generator=random)).to(dtype)
    if not fp8:
        return Case(queries, kept.to(dtype), None, tables, spans)
    scales = torch.tensor([0.5, 0.013])
    return Case(queries, to_e4m3(kept, scales[LAYER]).view(torch.uint8), scales, tables, spans)


def expected(case: Case) -> Tensor:
    """In float64, a sequence at a time."""
    cache = case.storage[LAYER]
    if case.scales is not None:
        cache = (cache.view(E4M3).float() * case.scales[LAYER]).to(case.queries.dtype)
    head_size = cache.shape[-1]
    results, row = [], 0
    for (start, end), table in zip(case.spans, case.tables, strict=True):
        keys, values = cache[:, table].flatten(1, 2)[:, :end].double()  # [end, kv_heads, head_size]
        queries = case.queries[row : row + end - start].double().view(end - start, -1, head_size)
        row += end - start
        group = queries.shape[1] // keys.shape[1]
        scores = torch.einsum("qhd,khd->hqk", queries, keys.repeat_interleave(group, 1)) / head_size**0.5
        future = torch.arange(end) > torch.arange(start, end)[:, None]
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        results.append(torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, 1)).flatten(1))
    return torch.cat(results)


def error(found: Tensor, exact: Tensor) -> float:
    """Relative to the largest value."""
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_scattered_sequences_get_exact_attention(
    path: str, heads: tuple[int, int, int], dtype: torch.dtype, fp8: bool
) -> None:
    case = make_case(*heads, dtype, fp8=fp8)
    assert error(case.attend(case.queries, case.batch()), expected(case)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decoding_gives_the_bits_of_a_chunk(path: str, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(*heads, dtype)
    together = case.attend(case.queries, case.batch())
    row = 0
    for index, (start, end) in enumerate(case.spans):
        for position in sorted({start, (start + end) // 2, end - 1}):
            alone = [(position, position + 1) if i == index else (0, 0) for i in range(len(case.spans))]
            at = row + position - start
            assert torch.equal(case.attend(case.queries[at : at + 1], case.batch(alone))[0], together[at])
        row += end - start


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 699), max_size=6), st.integers(1, 3))
def test_cuts_and_threads_change_nothing(path: str, cuts: list[int], count: int) -> None:
    case = make_case(64, 2, 4, torch.bfloat16, spans=[(0, 700)])
    whole = case.attend(case.queries, case.batch())
    edges = sorted({0, *cuts, 700})
    with threads(count):
        for start, end in pairwise(edges):
            assert torch.equal(case.attend(case.queries[start:end], case.batch([(start, end)])), whole[start:end])


def test_many_sequences_share_threads_as_one_does(path: str) -> None:
    """One long sequence is cut among the threads, many are not."""
    spans = [(1000, 1001)] * 9
    case = make_case(128, 1, 4, torch.bfloat16, spans=spans)
    with threads(2):
        together = case.attend(case.queries, case.batch())
        for i in range(len(spans)):
            alone = [span if i == j else (0, 0) for j, span in enumerate(spans)]
            assert torch.equal(case.attend(case.queries[i : i + 1], case.batch(alone))[0], together[i])


def test_no_tokens_are_no_work(path: str) -> None:
    case = make_case(64, 1, 2, torch.bfloat16, spans=[(0, 4)])
    assert case.attend(case.queries[:0], case.batch([(0, 0)])).shape == (0, 128)


def test_a_sequence_that_overflowed_stays_visible(path: str) -> None:
    case = make_case(64, 1, 2, torch.float16, spans=[(0, 40)])
    case.storage[LAYER, 0, case.tables[0][1], 2] = torch.inf  # the key of token 34
    found = case.attend(case.queries, case.batch())
    assert found[:34].isfinite().all()
    assert found[34:].isnan().any(dim=1).all()


@pytest.mark.parametrize("fault", ["blocks swapped", "one bit of a key", "heads swapped", "a token too few"])
def test_the_comparison_can_fail(path: str, fault: str) -> None:
    case = make_case(64, 2, 4, torch.bfloat16, spans=[(0, 80), (200, 201)])
    batch, queries, exact = case.batch(), case.queries, expected(case)
    if fault == "blocks swapped":
        batch.block_tables[:2] = batch.block_tables[:2].flip(0)
    elif fault == "one bit of a key":
        case.storage[LAYER, 0, case.tables[0][0], 3, 1].view(torch.int16)[5] ^= 0x0200  # of the exponent: 16 times
    elif fault == "heads swapped":
        queries = queries.view(len(queries), 2, -1).flip(1).flatten(1)
    else:
        batch.span_table[1, 1:3] -= 1
    assert error(case.attend(queries, batch), exact) > 2 * TOLERANCE[torch.bfloat16]
