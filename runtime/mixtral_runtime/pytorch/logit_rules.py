"""What requests ask of single logits: biases, then penalties, then bans, so that nothing lifts a ban.

A rule is made for the sequences of a batch, concerns the rows that ask for it, and changes the logits in place: those
of all rows, one after the other, [rows * vocab] float32.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from mixtral_runtime.engine import Request
from mixtral_runtime.pytorch.history import History

# Lower than any logit, yet finite: a request that bans every token still has a distribution.
BANNED = torch.finfo(torch.float32).min


class Rule(Protocol):
    def apply(self, logits: Tensor, steps: Tensor) -> None:
        """steps: [rows] int64, how many tokens each sequence has generated."""


class Biases:
    def __init__(self, requests: list[Request], vocab_size: int, device: torch.device) -> None:
        biases = [
            (row * vocab_size + token, bias)
            for row, request in enumerate(requests)
            for token, bias in request.logit_bias.items()
        ]
        self._places = _ids((place for place, _ in biases), device)
        self._values = torch.tensor([bias for _, bias in biases], dtype=torch.float32, device=device)

    def apply(self, logits: Tensor, steps: Tensor) -> None:
        logits[self._places] += self._values


class Penalties:
    """Repetition: Keskar et al. 2019, arXiv:1909.05858, section 4.1, over prompt and output, as TensorRT-LLM and
    transformers. Presence and frequency: over the output alone, as OpenAI's API defines them."""

    def __init__(
        self, requests: list[Request], places: dict[int, int], history: History, vocab_size: int, device: torch.device
    ) -> None:
        """places: by the row of each sequence to penalise, its place in the history."""
        params = [requests[row].sampling for row in places]

        def column(values: list[float]) -> Tensor:  # [penalised, 1]
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._repetition = column([one.repetition_penalty for one in params])
        self._presence = column([one.presence_penalty for one in params])
        self._frequency = column([one.frequency_penalty for one in params])
        self._starts = _ids((row * vocab_size for row in places), device)[:, None]
        self._places = _ids(places.values(), device)[:, None]
        self._history = history

    def apply(self, logits: Tensor, steps: Tensor) -> None:
        tokens = self._history.tokens[self._places[:, 0]]  # [penalised, longest]
        counts = self._history.counts[self._places, tokens]
        values = logits[self._starts + tokens]
        values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        values -= self._presence * (counts > 0) + self._frequency * counts
        logits[self._starts + tokens] = values  # a token that comes twice has the same value twice


class Bans:
    """Tokens that are bad by themselves, and the end token before min_tokens."""

    def __init__(self, requests: list[Request], vocab_size: int, device: torch.device) -> None:
        always = [
            row * vocab_size + bad[0]
            for row, request in enumerate(requests)
            for bad in request.bad_sequences
            if len(bad) == 1
        ]
        ending = [
            (row, row * vocab_size + request.end_id, request.min_tokens)
            for row, request in enumerate(requests)
            if request.end_id is not None and request.min_tokens
        ]
        self._always = _ids(always, device)
        self._rows, self._ends, self._least = (_ids((one[i] for one in ending), device) for i in range(3))

    def apply(self, logits: Tensor, steps: Tensor) -> None:
        logits[self._always] = BANNED
        logits[self._ends] = torch.where(steps[self._rows] < self._least, BANNED, logits[self._ends])


class BadSequences:
    """Those of more than one token: the last is banned where the newest tokens of the sequence are the others."""

    def __init__(
        self, requests: list[Request], places: dict[int, int], history: History, vocab_size: int, device: torch.device
    ) -> None:
        """places: by the row of each sequence with such, its place in the history."""
        banned: list[int] = []  # for each bad sequence
        wanted: list[tuple[int, int, int, int]] = []  # for each token before the last
        for row, place in places.items():
            for *before, last in requests[row].bad_sequences:
                wanted += [(place, back, token, len(banned)) for back, token in enumerate(reversed(before), 1)]
                banned += [row * vocab_size + last] if before else []
        self._banned = _ids(banned, device)
        self._places, self._back, self._tokens, self._of = (_ids((one[i] for one in wanted), device) for i in range(4))
        self._history = history

    def apply(self, logits: Tensor, steps: Tensor) -> None:
        positions = self._history.lengths[self._places] - self._back
        found = self._history.tokens[self._places, positions.clamp(min=0)]
        missing = (found != self._tokens) | (positions < 0)
        misses = torch.zeros_like(self._banned).index_add_(0, self._of, missing.long())
        logits[self._banned[misses == 0]] = BANNED


def needs_penalties(request: Request) -> bool:
    params = request.sampling
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def has_bad_sequences(request: Request) -> bool:
    """Of more than one token."""
    return any(len(bad) > 1 for bad in request.bad_sequences)


def _ids(values: Iterable[int], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device=device)
