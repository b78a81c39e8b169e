"""The tokens of one step, of any number of sequences, as the model sees them."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.kv_cache import BLOCK_SIZE


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


class BatchBuilder:
    """Collects the spans of a step, then moves them to the device at once."""

    def __init__(self) -> None:
        self._token_ids = array("q")
        self._span_table = array("q")
        self._block_tables = array("i")

    def add(self, token_ids: Sequence[int], start: int, block_ids: Sequence[int]) -> None:
        """token_ids: at positions `start` and following of the sequence that owns `block_ids`."""
        end = start + len(token_ids)
        self._span_table.extend((len(self._token_ids), start, end, len(self._block_tables)))
        self._token_ids.extend(token_ids)
        self._block_tables.extend(block_ids[: blocks_for(end)])

    def build(self, device: torch.device) -> Batch:
        spans = np.frombuffer(self._span_table, dtype=np.int64).reshape(-1, 4)
        tables = np.frombuffer(self._block_tables, dtype=np.int32)
        token_ids = np.frombuffer(self._token_ids, dtype=np.int64)
        row, start, end, first = spans.T
        lengths = end - start
        positions = np.arange(len(token_ids)) + np.repeat(start - row, lengths)
        blocks = tables[np.repeat(first, lengths) + positions // BLOCK_SIZE].astype(np.int64)
        tokens = torch.from_numpy(np.stack([token_ids, positions, blocks * BLOCK_SIZE + positions % BLOCK_SIZE]))
        moved = tokens.to(device)
        span_table, block_tables = (torch.from_numpy(part.copy()).to(device) for part in (spans, tables))
        longest = int(lengths.max(initial=0)), int(end.max(initial=0))
        return Batch(moved[0], moved[1], moved[2], span_table, block_tables, *longest)
