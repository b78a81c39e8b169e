"""What sequences have said, on the device and one column longer with every step, for rules that look back at it."""

import numpy as np
import torch
from torch import Tensor

from mixtral_runtime.pytorch.batch import move
from mixtral_runtime.pytorch.sequence import Sequence

CAPACITY = 256  # tokens at first; it doubles where a sequence is longer


class History:
    """A row for each sequence that needs one. It stays when the sequence leaves the batch, until its place is needed,
    so that whoever comes back finds it."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device, *, gpu_kernels: bool = False) -> None:
        """gpu_kernels: they read `seen` and `all_tokens`, and append."""
        self._gpu_kernels = gpu_kernels
        self._vocab_size = vocab_size
        self._place_of: dict[int, int] = {}  # by the sequence's id
        # [rows, capacity] int64. Behind its end a sequence repeats its first token: to meet one twice changes nothing.
        self._tokens = torch.zeros(rows, CAPACITY, dtype=torch.int64, device=device)
        self._longest = 0  # of the sequences placed last
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)  # [rows]
        self.counts = torch.zeros(0, vocab_size, device=device)  # [rows, vocab] float32, of the output, once needed
        self.seen = torch.zeros(0, vocab_size, dtype=torch.uint8, device=device)  # the same, whether prompt or output

    @property
    def tokens(self) -> Tensor:
        """[rows, as many as the longest sequence of the batch has] int64."""
        return self._tokens[:, : self._longest]

    @property
    def all_tokens(self) -> Tensor:
        """[rows, capacity] int64."""
        return self._tokens

    def places(self, sequences: list[Sequence]) -> list[int]:
        """The rows of all sequences of the batch that need one."""
        here = {sequence.id for sequence in sequences}
        for sequence in sequences:
            if sequence.id not in self._place_of:
                self._fill(self._free_place(here), sequence)
        self._longest = max((len(sequence.tokens) + sequence.ahead for sequence in sequences), default=0)
        return [self._place_of[sequence.id] for sequence in sequences]

    def append(self, places: Tensor, tokens: Tensor) -> None:
        """places: all of the batch. tokens: the next of each."""
        self.grow()
        self._tokens[places, self.lengths[places]] = tokens
        self.lengths[places] += 1
        self.counts[places, tokens] += 1

    def grow(self) -> None:
        """Makes room for one more token of each sequence of the batch."""
        self._longest += 1
        self._make_room(self._longest)

    def _free_place(self, here: set[int]) -> int:
        if len(self._place_of) < len(self._tokens):
            return len(self._place_of)
        return self._place_of.pop(next(number for number in self._place_of if number not in here))

    def _fill(self, place: int, sequence: Sequence) -> None:
        if not len(self.counts):
            self.counts = self.counts.new_zeros(len(self._tokens), self._vocab_size)
            if self._gpu_kernels:
                self.seen = self.seen.new_zeros(self.counts.shape)
        tokens = move(np.array(sequence.tokens), self._tokens.device)
        self._make_room(len(tokens))
        self._place_of[sequence.id] = place
        self._tokens[place] = tokens[0]
        self._tokens[place, : len(tokens)] = tokens
        self.lengths[place] = len(tokens)
        output = tokens[sequence.prompt_len :]
        if self._gpu_kernels:  # nor does this wait for the device, as `bincount` would
            self.counts[place].zero_().scatter_add_(0, output, torch.ones_like(output, dtype=torch.float32))
            self.seen[place].zero_().scatter_(0, tokens, 1)
        else:
            self.counts[place] = torch.bincount(output, minlength=self._vocab_size).float()

    def _make_room(self, length: int) -> None:
        while self._tokens.shape[1] < length:
            self._tokens = torch.cat((self._tokens, self._tokens[:, :1].expand_as(self._tokens)), dim=1)
