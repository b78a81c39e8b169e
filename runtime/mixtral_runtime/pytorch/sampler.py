"""From logits to the next token of each sequence, for the whole batch at once.

What sequences say of their tokens is laid out when a batch is met for the first time, and kept on the device while the
same sequences run. Every row is treated on its own and its random number depends on seed and step alone, so a request's
tokens are the same in every batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtral_runtime.engine import Request
from mixtral_runtime.kernels.availability import gpu_kernels_serve
from mixtral_runtime.pytorch.choice import FEW, MANY, Choice, Filters, best, draw_bounded, draw_unbounded
from mixtral_runtime.pytorch.gpu_sampler import GpuSampler
from mixtral_runtime.pytorch.history import History
from mixtral_runtime.pytorch.logit_rules import (
    BadSequences,
    Bans,
    Biases,
    Penalties,
    Rule,
    has_bad_sequences,
    needs_penalties,
)
from mixtral_runtime.pytorch.random_stream import hashed_seeds, uniforms
from mixtral_runtime.pytorch.sequence import Sequence


@dataclass(slots=True)
class _Group:
    """Rows that are drawn in the same way. width: that no top_k of them exceeds, 0 without top_k."""

    rows: Tensor  # [drawn] int64
    width: int
    filters: Filters
    seeds: Tensor  # [drawn] int64, hashed


class Sampler:
    def __init__(self, max_batch_size: int, vocab_size: int, device: torch.device) -> None:
        self._max_batch_size = max_batch_size
        self._vocab_size = vocab_size
        self._device = device
        self._history = History(max_batch_size, vocab_size, device)
        self._sequences: list[Sequence] = []  # the batch of which the rest is said
        self._steps = torch.zeros(0, dtype=torch.int64)  # [rows]: tokens generated
        self._groups: list[_Group] = []
        self._rules: list[Rule] = []
        self._tracked = self._places = torch.zeros(0, dtype=torch.int64)  # rows with a history, and where it is
        self._all_drawn = False

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """logits: [rows, vocab] float32, finite, a row per sequence -> [rows] int64, the chosen tokens."""
        if sequences != self._sequences:
            self._lay_out(sequences)
        if self._rules:
            logits = logits.clone()
            for rule in self._rules:
                rule.apply(logits.view(-1), self._steps)
        tokens = torch.zeros_like(self._steps) if self._all_drawn else best(logits)
        for group in self._groups:
            whole = len(group.rows) == len(logits)
            part = logits if whole else logits[group.rows]
            uniform = uniforms(group.seeds, self._steps[group.rows])[:, None]
            if group.width:
                tokens[group.rows] = draw_bounded(part, group.filters, uniform, group.width)
            else:
                tokens[group.rows] = draw_unbounded(part, group.filters, uniform)
        return tokens

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def choose(self, logits: Tensor, sequences: list[Sequence]) -> Choice:
        """As `sample`, for logits that need not be finite."""
        finite = (logits.amin(dim=-1) > -math.inf) & (logits.amax(dim=-1) < math.inf)  # NaN is neither
        if not logits.is_cpu or not finite.all():
            logits = logits.nan_to_num()
        return Choice(torch.stack((self.sample(logits, sequences), finite.long())))

    def append(self, tokens: Tensor) -> None:
        """Takes note of what was sampled: each sequence of the batch has one more token now."""
        self._steps += 1
        if len(self._tracked):
            self._history.append(self._places, tokens[self._tracked])

    def forget(self) -> None:
        """After a step that failed, all is laid out anew from the sequences."""
        self._sequences = []
        self._history = History(self._max_batch_size, self._vocab_size, self._device)

    def _lay_out(self, sequences: list[Sequence]) -> None:
        self._sequences = []
        requests = [sequence.request for sequence in sequences]
        args = self._vocab_size, self._device
        rules: list[Rule] = []
        if any(request.logit_bias for request in requests):
            rules.append(Biases(requests, *args))
        penalised = [row for row, request in enumerate(requests) if needs_penalties(request)]
        restricted = [row for row, request in enumerate(requests) if has_bad_sequences(request)]
        tracked = sorted({*penalised, *restricted})
        places = dict(zip(tracked, self._history.places([sequences[row] for row in tracked]), strict=True))
        if penalised:
            rules.append(Penalties(requests, {row: places[row] for row in penalised}, self._history, *args))
        if any(request.bad_sequences or request.min_tokens for request in requests):
            rules.append(Bans(requests, *args))
        if restricted:
            rules.append(BadSequences(requests, {row: places[row] for row in restricted}, self._history, *args))
        self._rules = rules
        self._tracked = self._ids(tracked)
        self._places = self._ids(list(places.values()))
        self._steps = self._ids([sequence.output_len + sequence.ahead for sequence in sequences])
        random = [row for row, request in enumerate(requests) if not request.sampling.greedy]
        self._all_drawn = len(random) == len(sequences)
        by_width: dict[int, list[int]] = {}
        for row in random:
            top_k = requests[row].sampling.top_k
            by_width.setdefault((FEW if top_k <= FEW else MANY) if top_k else 0, []).append(row)
        self._groups = [self._group(rows, width, requests) for width, rows in by_width.items()]
        self._sequences = sequences

    def _group(self, rows: list[int], width: int, requests: list[Request]) -> _Group:
        params = [requests[row].sampling for row in rows]

        def column(values: list[float]) -> Tensor:  # [drawn, 1]
            return torch.tensor(values, dtype=torch.float64, device=self._device)[:, None]

        filters = Filters(
            temperature=column([one.temperature for one in params]),
            top_k=self._ids([one.top_k for one in params])[:, None],
            top_p=column([one.top_p for one in params]),
            min_p=column([one.min_p for one in params]),
        )
        return _Group(self._ids(rows), width, filters, hashed_seeds([one.seed for one in params]).to(self._device))

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


AnySampler = Sampler | GpuSampler


def new_sampler(max_batch_size: int, vocab_size: int, device: torch.device) -> AnySampler:
    """The one for the device."""
    return (GpuSampler if gpu_kernels_serve(device) else Sampler)(max_batch_size, vocab_size, device)
