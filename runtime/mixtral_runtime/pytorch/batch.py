"""The tokens of one step, of any number of sequences, as the model sees them."""

from dataclasses import dataclass

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
    blocks: Tensor  # [blocks up to `end`] int64, the sequence's block table

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.end - self.start)


@dataclass(frozen=True, slots=True)
class Batch:
    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64, within their sequence
    slots: Tensor  # [tokens] int64, where their keys and values go
    spans: list[Span]


class BatchBuilder:
    """Collects the spans of a step, then moves them to the device at once."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._positions: list[int] = []
        self._slots: list[int] = []
        self._spans: list[tuple[int, int, int, list[int]]] = []

    def add(self, token_ids: list[int], start: int, block_ids: list[int]) -> None:
        """token_ids: at positions `start` and following of the sequence that owns `block_ids`."""
        end = start + len(token_ids)
        positions = range(start, end)
        self._spans.append((len(self._token_ids), start, end, block_ids[: blocks_for(end)]))
        self._token_ids += token_ids
        self._positions += positions
        self._slots += [block_ids[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]

    def build(self, device: torch.device) -> Batch:
        tokens = torch.tensor([self._token_ids, self._positions, self._slots], device=device)
        tables = torch.tensor([block for *_, blocks in self._spans for block in blocks], device=device)
        split = torch.split(tables, [len(blocks) for *_, blocks in self._spans])
        spans = [Span(row, start, end, table) for (row, start, end, _), table in zip(self._spans, split, strict=True)]
        return Batch(tokens[0], tokens[1], tokens[2], spans)
