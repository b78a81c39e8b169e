"""The sampler on a GPU: the same tokens as `sampler.Sampler` on a CPU, and nothing waits for the device, least of all
while the same sequences run.

What sequences say of their tokens is laid out in a few tables when a batch is met for the first time; after that a step
is two launches, three where rows are drawn, one more where a bad sequence has several tokens, and one for `append`.
"""

from collections.abc import Sequence as Values
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.pytorch.batch import move
from mixtral_runtime.pytorch.choice import Choice
from mixtral_runtime.pytorch.history import History
from mixtral_runtime.pytorch.logit_rules import has_bad_sequences, needs_penalties
from mixtral_runtime.pytorch.random_stream import hashed_seeds
from mixtral_runtime.pytorch.sequence import Sequence

if TYPE_CHECKING:
    from mixtral_runtime.kernels.gpu.sampling_history import BadSequences


class GpuSampler:
    def __init__(self, max_batch_size: int, vocab_size: int, device: torch.device) -> None:
        from mixtral_runtime.kernels.gpu import sampling, sampling_history  # Triton may not be installed elsewhere

        self._sampling, self._sampling_history = sampling, sampling_history
        self._max_batch_size = max_batch_size
        self._vocab_size = vocab_size
        self._device = device
        self.forget()

    def warm_up(self) -> None:
        """Compiles all that later steps may need, so that none of them waits for the compiler."""
        greedy, drawn = Request([0], 1), Request([0], 1, SamplingParams(1.0))
        ruled = Request([0], 1, SamplingParams(repetition_penalty=2.0), bad_sequences=[[0, 0]])
        for requests in ([greedy], [drawn], [ruled], [ruled, drawn]):
            sequences = [Sequence(number, request, None) for number, request in enumerate(requests)]
            logits = torch.zeros(len(requests), self._vocab_size, device=self._device)
            self.append(self.sample(logits, sequences))
        self.forget()

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """`choose`'s tokens."""
        return self.choose(logits, sequences).tokens

    def choose(self, logits: Tensor, sequences: list[Sequence]) -> Choice:
        """logits: [rows, vocab] of any float type, not necessarily finite, a row per sequence; they are not changed."""
        if sequences != self._sequences:
            self._lay_out(sequences)
        if self._bad is not None:
            history = self._history
            self._sampling_history.ban_completed(self._bad, self._rows.bias, history.all_tokens, history.lengths)
        return Choice(self._sampling.sample(logits, self._rows))

    def append(self, tokens: Tensor) -> None:
        """Takes note of what was sampled: each sequence of the batch has one more token now."""
        if self._tracked:
            self._history.grow()
        self._sampling_history.append(tokens, self._rows, self._history.all_tokens, self._history.lengths)

    def forget(self) -> None:
        """After a step that failed, all is laid out anew from the sequences."""
        self._sequences: list[Sequence] | None = None  # the batch that is laid out
        self._history = History(self._max_batch_size, self._vocab_size, self._device, gpu_kernels=True)

    def _lay_out(self, sequences: list[Sequence]) -> None:
        self._sequences = None
        requests = [sequence.request for sequence in sequences]
        params = [request.sampling for request in requests]
        penalised = {row for row, request in enumerate(requests) if needs_penalties(request)}
        tracked = sorted(penalised | {row for row, request in enumerate(requests) if has_bad_sequences(request)})
        placed = dict(zip(tracked, self._history.places([sequences[row] for row in tracked]), strict=True))
        biased = [row for row, request in enumerate(requests) if request.logit_bias or request.bad_sequences]
        bias_rows = {row: number for number, row in enumerate(biased)}
        every = range(len(sequences))
        whole = [
            [sequence.output_len + sequence.ahead for sequence in sequences],
            hashed_seeds([one.seed for one in params]).tolist(),
            [one.top_k for one in params],
            [bias_rows.get(row, -1) for row in every],
            [placed[row] if row in penalised else -1 for row in every],
            [placed.get(row, -1) for row in every],
            [-1 if request.end_id is None else request.end_id for request in requests],
            [request.min_tokens for request in requests],
        ]
        real = [
            [0.0 if one.greedy else one.temperature for one in params],
            [one.top_p for one in params],
            [one.min_p for one in params],
            [one.repetition_penalty for one in params],
            [one.presence_penalty for one in params],
            [one.frequency_penalty for one in params],
        ]
        bias = _bias(requests, biased, self._vocab_size)
        self._tracked = bool(tracked)
        self._rows = self._sampling.Rows(
            whole=self._moved(whole, np.int64),
            real=self._moved(real, np.float64),
            stops=self._moved(_stops(requests), np.int64),
            bias=self._dense(bias, len(biased)),
            counts=self._history.counts,
            seen=self._history.seen,
            adjusted=bool(biased or penalised) or any(request.min_tokens for request in requests),
            drawn=any(not one.greedy for one in params),
        )
        self._bad = self._bad_sequences(requests, bias_rows, placed, bias)
        self._sequences = sequences

    def _dense(self, bias: dict[int, float], rows: int) -> Tensor:
        """[rows, vocab] float32."""
        dense = torch.zeros(rows, self._vocab_size, device=self._device)
        if bias:
            places = self._moved([*bias], np.int64)
            dense.view(-1)[places] = self._moved([*bias.values()], np.float32)
        return dense

    def _bad_sequences(
        self, requests: list[Request], bias_rows: dict[int, int], placed: dict[int, int], bias: dict[int, float]
    ) -> "BadSequences | None":
        """placed: by the row of each sequence that has a history, its place there."""
        by_last: dict[tuple[int, int], list[list[int]]] = {}  # by place in the bias and in the history
        for row, request in enumerate(requests):
            for *before, last in request.bad_sequences:
                banned = bias_rows[row] * self._vocab_size + last
                if before and bias.get(banned) != -np.inf:
                    by_last.setdefault((banned, placed[row]), []).append(before)
        if not by_last:
            return None
        groups: list[list[int]] = []
        sequences: list[list[int]] = []
        tokens: list[int] = []
        for (banned, place), befores in by_last.items():
            groups.append([banned, place, len(sequences), len(befores)])
            for before in befores:
                sequences.append([len(tokens), len(before)])
                tokens += before
        return self._sampling_history.BadSequences(
            groups=self._moved(groups, np.int64),
            otherwise=self._moved([bias.get(banned, 0.0) for banned, _ in by_last], np.float32),
            sequences=self._moved(sequences, np.int64),
            before=self._moved(tokens, np.int64),
        )

    def _moved(self, values: Values[Any], dtype: type) -> Tensor:
        return move(np.array(values, dtype=dtype), self._device)


def _bias(requests: list[Request], biased: list[int], vocab_size: int) -> dict[int, float]:
    """By place in [biased, vocab], flattened; -inf for a token that is always banned."""
    found: dict[int, float] = {}
    for number, row in enumerate(biased):
        start = number * vocab_size
        found |= {start + token: bias for token, bias in requests[row].logit_bias.items()}
        found |= {start + bad[0]: -np.inf for bad in requests[row].bad_sequences if len(bad) == 1}
    return found


def _stops(requests: list[Request]) -> list[list[int]]:
    """For each request the tokens that end it by themselves, filled up with -1 to the same number of them."""
    stops = [
        [stop[0] for stop in request.stop_sequences if len(stop) == 1]
        + ([] if request.end_id is None else [request.end_id])
        for request in requests
    ]
    width = max(map(len, stops))
    return [one + [-1] * (width - len(one)) for one in stops]
