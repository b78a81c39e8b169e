"""Reading the next weights from the disk while the current ones are worked on."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from mixtral_build.hf_checkpoint import HfCheckpoint
from mixtral_runtime.formats import TensorSpec

PAGE_BYTES = 4096
# Below what PyTorch gives to several threads, which would take the processor from those who work.
PAGES_AT_ONCE = 16384


class ReadAhead:
    """A mapped file is read when its pages are touched, and whoever touches them waits for the disk. Here a thread
    touches the tensors of the next piece. pieces: in the order in which they will be used; the first is left to the
    user, who wants it at once."""

    def __init__(self, source: HfCheckpoint, pieces: Iterable[Sequence[TensorSpec]]) -> None:
        self._source = source
        self._pieces = iter(pieces)
        next(self._pieces, None)
        self._executor = ThreadPoolExecutor(1)

    def advance(self) -> None:
        """Begins to read the next piece and returns at once."""
        self._executor.submit(self._touch, next(self._pieces, ()))

    def _touch(self, piece: Sequence[TensorSpec]) -> None:
        for spec in piece:
            pages = self._source.tensor(spec).view(-1).view(torch.uint8)[::PAGE_BYTES]
            for some in torch.split(pages, PAGES_AT_ONCE):
                some.sum()

    def __enter__(self) -> Self:
        self.advance()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._executor.shutdown(cancel_futures=True)
