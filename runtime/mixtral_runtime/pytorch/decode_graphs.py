"""Decode steps recorded as CUDA graphs: one launch from the host instead of some three hundred.

A graph is recorded for a fixed number of rows and reads its inputs from buffers that stay where they are. A batch takes
the smallest graph that has room; the rows left over are tokens of nobody, whose keys and values go to a block of their
own.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import Batch, BatchBuilder, HostBatch, IntArray, move, with_sampled
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE, KvCache
from mixtral_runtime.pytorch.model import MixtralModel

# Few rows have a graph of exactly their number: a row of nobody has experts chosen for it, which are read in vain.
# Between many the steps widen, since most experts are read anyway.
EXACT = 16
STEPS = ((64, 8), (256, 32), (1 << 30, 128))  # up to so many rows: graphs so far apart
POSITION = 0  # of a token of nobody, the only one of its sequence

logger = logging.getLogger(__name__)

# From what launches a step to its replay, and the tensor that each replay fills.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def graph_sizes(max_batch_size: int) -> list[int]:
    """Rows, ascending; the last has room for a full batch."""
    sizes = list(range(1, min(EXACT, max_batch_size) + 1))
    for limit, apart in STEPS:
        while sizes[-1] < min(limit, max_batch_size):
            sizes.append(sizes[-1] + apart)
    return sizes


def cuda_recorder() -> Recorder:
    """What it records shares one pool of memory: no two of its graphs run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        function()  # compiles the kernels, and lets libraries allocate what may not be allocated in a graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result

    return record


@dataclass(frozen=True, slots=True)
class _Recorded:
    """logits: [rows, vocab] float32, filled by `replay` from `inputs`: [8, rows] int64, the four rows of
    HostBatch.tokens and the span table, and block_tables int32."""

    replay: Callable[[], object]
    logits: Tensor
    inputs: Tensor
    block_tables: Tensor


class DecodeGraphs:
    def __init__(
        self,
        model: MixtralModel,
        cache: KvCache,
        max_batch_size: int,
        max_seq_len: int,
        record: Recorder,
    ) -> None:
        """cache: its last block is not given to any sequence. record: of CUDA graphs, or what stands in for them on a
        CPU."""
        self._model = model
        self._cache = cache
        self._max_seq_len = max_seq_len
        self._record = record
        self._nobodys_block = cache.total_blocks - 1
        self._sizes = graph_sizes(max_batch_size)
        # The largest first: the others then find room in its memory.
        self._recorded = {rows: self._make(rows) for rows in reversed(self._sizes)}
        logger.info("recorded %d decode graphs, of up to %d sequences", len(self._sizes), self._sizes[-1])

    def run(self, batch: HostBatch, sampled: Tensor | None) -> Tensor:
        """batch: spans of one token. sampled: as in HostBatch.to. -> [spans, vocab] float32, until the next run."""
        spans = len(batch.span_table)
        recorded = self._recorded[next(rows for rows in self._sizes if rows >= spans)]
        inputs, block_tables = self._padded(batch, recorded.inputs.shape[1])
        device = self._model.device
        recorded.inputs.copy_(move(inputs, device))
        recorded.block_tables[: len(block_tables)].copy_(move(block_tables, device))
        if sampled is not None and batch.takes_sampled:
            token_ids, _, _, sources = recorded.inputs[:4]
            token_ids.copy_(with_sampled(token_ids, sources, sampled))
        recorded.replay()
        return recorded.logits[:spans]

    def _padded(self, batch: HostBatch, rows: int) -> tuple[IntArray, IntArray]:
        """The inputs of `_Recorded`, for so many rows."""
        spans, blocks = len(batch.span_table), len(batch.block_tables)
        inputs = np.zeros((8, rows), dtype=np.int64)
        inputs[1, spans:] = POSITION
        inputs[2, spans:] = self._nobodys_block * BLOCK_SIZE + POSITION
        inputs[3, spans:] = -1
        table = inputs[4:].reshape(rows, 4)
        nobody = [(row, POSITION, POSITION + 1, blocks) for row in range(spans, rows)]
        table[spans:] = np.array(nobody, dtype=np.int64).reshape(-1, 4)
        inputs[:4, :spans] = batch.tokens
        table[:spans] = batch.span_table
        return inputs, np.append(batch.block_tables, np.int32(self._nobodys_block))

    @torch.inference_mode()
    def _make(self, rows: int) -> _Recorded:
        device = self._model.device
        inputs = torch.zeros(8, rows, dtype=torch.int64, device=device)
        block_tables = torch.full(
            (rows * blocks_for(self._max_seq_len) + 1,), self._nobodys_block, dtype=torch.int32, device=device
        )
        nobody = BatchBuilder().finish()
        inputs.copy_(move(self._padded(nobody, rows)[0], device))
        token_ids, positions, slots, _ = inputs[:4]
        batch = Batch(token_ids, positions, slots, inputs[4:].view(rows, 4), block_tables, 1, self._max_seq_len)

        def step() -> Tensor:
            return self._model.logits(self._model.forward(batch, self._cache))

        replay, logits = self._record(step)
        return _Recorded(replay, logits, inputs, block_tables)
