"""The tokens of one step, of any number of sequences, as the model sees them."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence: positions start to end (exclusive), rows `row` and following of the batch."""

    row: int
    start: int
    end: int
    blocks: Tensor  # [blocks up to `end`] int32, the sequence's block table

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.end - self.start)


@dataclass(frozen=True)
class Batch:
    """span_table, block_tables: the spans as the kernels read them. longest_query: tokens of a span, longest_context:
    the largest end of one; both may be more than there is, and are numbers so that nobody need ask the device."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64, within their sequence
    slots: Tensor  # [tokens] int64, where their keys and values go
    span_table: Tensor  # [spans, 4] int64: row, start, end, first entry in block_tables
    block_tables: Tensor  # [blocks of all spans] int32
    longest_query: int
    longest_context: int

    @cached_property
    def spans(self) -> list[Span]:
        tables: list[tuple[int, int, int, int]] = self.span_table.tolist()
        return [
            Span(row, start, end, self.block_tables[first : first + blocks_for(end)])
            for row, start, end, first in tables
        ]

    @property
    def last_rows(self) -> Tensor:
        """[spans] int64, the row of each span's last token."""
        row, start, end, _ = self.span_table.unbind(1)
        return row + end - start - 1


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A batch before it is on the device. tokens: [4, tokens] int64: ids, positions, slots, and from which row of the
    last step's sampled tokens the id comes, -1 where it is known here."""

    tokens: IntArray
    span_table: IntArray  # [spans, 4] int64
    block_tables: IntArray  # [blocks of all spans] int32
    longest_query: int
    longest_context: int

    @property
    def takes_sampled(self) -> bool:
        return bool((self.tokens[3] >= 0).any())

    @property
    def last_rows(self) -> IntArray:
        """[spans] int64, the row of each span's last token."""
        row, start, end, _ = self.span_table.T
        last: IntArray = row + end - start - 1
        return last

    def to(self, device: torch.device, sampled: Tensor | None = None) -> Batch:
        """sampled: [rows] int64 on the device, the tokens of the step before, where some are not known here."""
        token_ids, positions, slots, sources = move(self.tokens, device)
        if sampled is not None and self.takes_sampled:
            token_ids = with_sampled(token_ids, sources, sampled)
        tables = move(self.span_table, device), move(self.block_tables, device)
        return Batch(token_ids, positions, slots, *tables, self.longest_query, self.longest_context)


class BatchBuilder:
    """Collects the spans of a step, then moves them to the device at once."""

    def __init__(self) -> None:
        self._token_ids = array("q")
        self._sources = array("q")
        self._span_table = array("q")
        self._block_tables = array("i")
        self._longest_query = self._longest_context = 0

    @property
    def tokens(self) -> int:
        """Those that were added."""
        return len(self._token_ids)

    def add(self, token_ids: Sequence[int], start: int, block_ids: Sequence[int]) -> None:
        """token_ids: at positions `start` and following of the sequence that owns `block_ids`."""
        end = start + len(token_ids)
        self._span_table.extend((len(self._token_ids), start, end, len(self._block_tables)))
        self._token_ids.extend(token_ids)
        self._sources.extend([-1] * len(token_ids))
        self._block_tables.extend(block_ids[: blocks_for(end)])
        self._longest_query = max(self._longest_query, len(token_ids))
        self._longest_context = max(self._longest_context, end)

    def add_sampled(self, source: int, position: int, block_ids: Sequence[int]) -> None:
        """One token, that of row `source` among those that the step before has sampled."""
        self.add([0], position, block_ids)
        self._sources[-1] = source

    def finish(self) -> HostBatch:
        spans = np.frombuffer(self._span_table, dtype=np.int64).reshape(-1, 4)
        tables = np.frombuffer(self._block_tables, dtype=np.int32)
        token_ids, sources = (np.frombuffer(part, dtype=np.int64) for part in (self._token_ids, self._sources))
        row, start, end, first = spans.T
        lengths = end - start
        positions = np.arange(len(token_ids)) + np.repeat(start - row, lengths)
        blocks = tables[np.repeat(first, lengths) + positions // BLOCK_SIZE].astype(np.int64)
        slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
        tokens = np.stack([token_ids, positions, slots, sources])
        return HostBatch(tokens, spans.copy(), tables.copy(), self._longest_query, self._longest_context)

    def build(self, device: torch.device) -> Batch:
        return self.finish().to(device)


def move(values: IntArray, device: torch.device) -> Tensor:
    """To the device, without waiting for what it computes at the moment."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def with_sampled(token_ids: Tensor, sources: Tensor, sampled: Tensor) -> Tensor:
    """token_ids, sources: [tokens] int64, as in HostBatch. sampled: [rows] int64."""
    return torch.where(sources < 0, token_ids, sampled[sources.clamp(min=0)])
