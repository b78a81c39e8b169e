"""The GPU's attention kernels, in Triton's interpreter: exact within the dtype's rounding, whatever the spans, and
however the keys are cut in pieces."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from attention_cases import CPU, LAYER, AttentionCase, Spans, attention_case, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.kernels.availability import gpu_kernels
from mixtral_runtime.kernels.gpu.attention import GpuAttention, decode_alone
from mixtral_runtime.kernels.gpu.attention_config import Gpu, decode_config, pieces_of
from mixtral_runtime.kernels.gpu.attention_prefill import span_of
from mixtral_runtime.pytorch.attention import PlainAttention, paged_attention
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache

# Of the norm. The interpreter cuts float32 off where the GPU rounds it to bfloat16, so that errors there are twice.
TOLERANCE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-10}
HEADS = [(32, 2, 1), (32, 1, 3), (64, 2, 4), (128, 1, 4), (128, 1, 8), (128, 1, 5)]  # head size, KV heads, group
H200 = Gpu(90, 132)
DECODE: Spans = [(0, 1), (100, 101), (128, 129), (127, 128), (413, 414)]
MIXED: Spans = [(0, 2), (40, 41), (0, 33), (200, 201), (90, 123)]


def attend(case: AttentionCase, gpu: Gpu = H200) -> Tensor:
    """Poisons what the kernels are to write, and looks whether they leave things as they found them."""
    attention = GpuAttention(
        case.kv_heads * case.group, case.kv_heads, case.head_size, case.rotary, case.storage.dtype, gpu
    )
    attention._partials.fill_(torch.nan)
    found = attention.attend(LAYER, case.qkv, case.storage, case.scales, case.batch)
    assert not attention._arrivals.any()
    return found


@pytest.mark.parametrize(
    ("heads", "fp8"), [*((heads, False) for heads in HEADS), (HEADS[0], True), (HEADS[2], True), (HEADS[5], True)]
)
def test_scattered_sequences_get_exact_attention(heads: tuple[int, int, int], fp8: bool) -> None:
    case = attention_case(*heads, torch.float16, MIXED, fp8=fp8)
    stored, exact = case.stored(), case.expected()
    assert error(attend(case), exact) <= TOLERANCE[torch.float16]
    assert torch.equal(case.storage.view(torch.uint8), stored.view(torch.uint8))


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
def test_a_step_of_decoding_gets_exact_attention(fp8: bool) -> None:
    case = attention_case(128, 1, 4, torch.float16, DECODE, fp8=fp8)
    stored, exact = case.stored(), case.expected()
    assert error(attend(case), exact) <= TOLERANCE[torch.float16]
    assert torch.equal(case.storage.view(torch.uint8), stored.view(torch.uint8))


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
@pytest.mark.parametrize("sm", [80, 90])
def test_bfloat16_on_both_kinds_of_gpu(sm: int, fp8: bool) -> None:
    """Keys that were cut off in the interpreter may fall on the next value of E4M3."""
    case = attention_case(64, 1, 4, torch.bfloat16, [(0, 9), (140, 141)], fp8=fp8)
    exact = case.expected()
    assert error(attend(case, Gpu(sm, 132)), exact) <= TOLERANCE[torch.bfloat16] * (1 + fp8)


@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
def test_pieces_add_up(multiprocessors: int) -> None:
    """From one piece to as many as there are: the more multiprocessors, the more pieces."""
    case = attention_case(32, 1, 4, torch.float16, [(500, 501), (129, 130)])
    exact = case.expected()
    gpu = Gpu(80, multiprocessors)
    pieces = pieces_of(2, 501, decode_config(32, torch.float16, gpu), gpu)
    assert (pieces > 1) == (multiprocessors > 1)
    assert error(attend(case, gpu), exact) <= TOLERANCE[torch.float16]


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 260), st.sampled_from([1, 1, 2, 9, 40])), min_size=1, max_size=4),
    st.sampled_from(HEADS),
    st.booleans(),
    st.integers(1, 8),
)
def test_any_spans_get_exact_attention(
    lengths: list[tuple[int, int]], heads: tuple[int, int, int], fp8: bool, multiprocessors: int
) -> None:
    spans = [(start, start + length) for start, length in lengths]
    case = attention_case(*heads, torch.float16, spans, fp8=fp8)
    exact = case.expected()
    assert error(attend(case, Gpu(90, multiprocessors)), exact) <= TOLERANCE[torch.float16]


@triton.jit  # type: ignore[untyped-decorator]
def spans_of_tiles(found, tiles, span_table, spans, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]
    tile = tl.load(tiles + tl.program_id(0))
    tl.store(found + tl.program_id(0), span_of(tile, span_table, spans, QUERIES))


@pytest.mark.parametrize("lengths", [[1, 40, 16, 17, 1, 3], [5] * 127 + [1, 35, 16, 1]], ids=len)
def test_every_tile_finds_its_span(lengths: list[int]) -> None:
    """Also where there are more spans than are searched at once."""
    rows = torch.tensor([0, *lengths]).cumsum(0)
    table = torch.zeros(len(lengths), 4, dtype=torch.int64)
    table[:, 0] = rows[:-1]
    tiles, owners = [], []
    for span in [*range(5), *range(len(lengths) - 4, len(lengths))]:
        for i in range(-(-lengths[span] // 16)):
            tiles.append(int(rows[span]) // 16 + span + i)
            owners.append(span)
    found = torch.full([len(tiles)], -1)
    spans_of_tiles[(len(tiles),)](found, torch.tensor(tiles), table, len(lengths), QUERIES=16)
    assert found.tolist() == owners
    assert len(set(tiles)) == len({*zip(tiles, owners, strict=True)})


def test_a_graph_of_more_rows_and_keys_than_there_are() -> None:
    """Spans that fill a batch up are one token at position 0 of a scratch block; the context is only a bound."""
    case = attention_case(64, 1, 4, torch.float16, [(70, 71), (40, 41), (0, 1), (0, 1)])
    table = case.batch.span_table
    table[3, 3] = table[2, 3]  # both write to one block
    case.batch.slots[3] = case.batch.slots[2]
    case.tables[3] = case.tables[2]
    case = replace(case, batch=replace(case.batch, longest_context=4096))
    exact = case.expected()[:2]
    found = attend(case)
    assert error(found[:2], exact) <= TOLERANCE[torch.float16]
    assert found.isfinite().all()


def test_the_same_batch_gets_the_same_bits() -> None:
    case = attention_case(32, 2, 4, torch.float16, [(500, 501), (20, 60)])
    assert torch.equal(attend(case), attend(case))


def test_no_tokens_are_no_work() -> None:
    case = attention_case(64, 1, 2, torch.float16, [(0, 4)])
    empty = replace(case, qkv=case.qkv[:0], batch=BatchBuilder().build(CPU))
    assert attend(empty).shape == (0, 128)


def test_a_sequence_that_overflowed_stays_visible() -> None:
    case = attention_case(64, 1, 2, torch.float16, [(40, 41), (60, 61), (60, 63)])
    case.storage[LAYER, 0, case.tables[0][1], 2] = torch.nan  # the key of token 34
    case.storage[LAYER, 1, case.tables[2][1], 2] = torch.inf
    found = attend(case)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    assert not found[2:].isfinite().any()


@pytest.mark.parametrize("fault", ["blocks swapped", "one bit of a key", "heads swapped", "a token too few"])
def test_the_comparison_can_fail(fault: str) -> None:
    case = attention_case(64, 2, 4, torch.float16, [(10, 80), (200, 201)])
    exact = case.expected()
    if fault == "blocks swapped":
        case.batch.block_tables[:2] = case.batch.block_tables[:2].flip(0)
    elif fault == "one bit of a key":
        case.storage[LAYER, 0, case.tables[0][0], 3, 1].view(torch.int16)[5] ^= 0x1000  # of the exponent: 16 times
    elif fault == "heads swapped":
        case.qkv[:, : 8 * 64] = case.qkv[:, : 8 * 64].view(-1, 2, 4 * 64).flip(1).flatten(1)
    else:
        case.batch.span_table[1, 1:3] -= 1
    assert not error(attend(case), exact) <= TOLERANCE[torch.float16]


def test_the_kernel_alone_reads_the_cache_it_is_given() -> None:
    storage = torch.zeros(2, 2, 8, BLOCK_SIZE, 2, 64, dtype=torch.float16)
    storage[1, 1] = 3.0
    run = decode_alone(storage, None, [130, 65], [[5, 1, 2, 0, 7], [3, 4, 6]], 4, torch.float16)
    found = run(1)
    assert found.shape == (2, 2 * 4 * 64)
    # Keys are alike but for the new one, so that its value alone can pull the mean away from 3.
    assert (found.float() - 3).abs().max() < 2
    assert (run(0).float()).abs().max() < 2


@pytest.fixture
def config(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointConfig]:
    """Of a small model, where GPU kernels take tensors on the CPU."""
    monkeypatch.setenv("MIXTRAL_GPU_KERNELS", "interpret")
    gpu_kernels.cache_clear()
    yield checkpoint.config
    gpu_kernels.cache_clear()


def chunk(tables: list[list[int]], spans: Spans) -> Batch:
    builder = BatchBuilder()
    for (start, end), table in zip(spans, tables, strict=True):
        if start < end:
            builder.add([0] * (end - start), start, table)
    return builder.build(CPU)


@pytest.mark.parametrize("fp8", [False, True], ids=["16bit", "fp8"])
def test_steps_give_what_plain_pytorch_gives(config: CheckpointConfig, fp8: bool) -> None:
    """Two sequences through prefill, a chunk beside a decode, and decode; each engine with a cache of its own."""
    if fp8:
        config = replace(config, quantization=replace(config.quantization, kv_cache_quant_algo="FP8"))
    scales = torch.full([config.num_hidden_layers], 0.02) if fp8 else None
    kernels = paged_attention(config, CPU, torch.float16)
    assert isinstance(kernels, GpuAttention)
    engines = [
        (attention, KvCache(config, 8, CPU, torch.float16, scales))
        for attention in (kernels, PlainAttention(config, CPU, torch.float16))
    ]
    tables = [[3, 0, 6], [7, 2]]
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_size
    for step, spans in enumerate([[(0, 37), (0, 20)], [(37, 38), (20, 52)], [(38, 39), (52, 53)]]):
        batch = chunk(tables, spans)
        random = torch.Generator().manual_seed(step)
        qkv = torch.randn(len(batch.slots), width, generator=random).half()
        found, plain = (attention(1, qkv, cache, batch) for attention, cache in engines)
        assert error(found, plain.double()) <= TOLERANCE[torch.float16]
    assert torch.equal(engines[0][1].storage, engines[1][1].storage)


def test_other_heads_and_dtypes_are_left_to_plain_pytorch(config: CheckpointConfig) -> None:
    assert not isinstance(paged_attention(config, CPU, torch.float32), GpuAttention)
    assert not isinstance(paged_attention(replace(config, head_size=80), CPU, torch.float16), GpuAttention)
