"""Token ids in, text out: the one place that turns a stream of tokens into the pieces a client sees.

The text of a request is decode(prompt tail + output) without the prompt tail's text. Its pieces, however the ids are
grouped into calls, join to exactly that text: no space lost, no half character sent, nothing twice. Invalid UTF-8
becomes one U+FFFD per byte, as SentencePiece decodes it.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from mixtral_serving.vocabulary import Vocabulary

_TAIL_TOKENS = 4  # a UTF-8 character has at most four bytes, so no unfinished one reaches further back


def _one_mark_per_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("mixtral-bytes", _one_mark_per_byte)


@dataclass(slots=True)
class Piece:
    """text: what may be sent now. tokens: how many of the pushed tokens belong to the output, fewer than were pushed
    when a stop string ended inside. stopped: a stop string was found, in this call or before."""

    text: str
    tokens: int
    stopped: bool


class TextStream:
    """The text of one sequence.

    A stop string matches on text, across tokens, and is cut from the output; of several the one that ends first
    counts, of those the longest. Text that may still become a stop string is held back, at the end it is flushed.
    `strip_space` drops one leading space: a chat answer follows `[/INST]` with one that is not part of it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_tail: Sequence[int],
        stops: Sequence[str] = (),
        *,
        strip_space: bool = False,
    ) -> None:
        self._vocabulary = vocabulary
        self._unfinished = b""  # the beginning of a character
        self._strip_space = False  # not from the prompt
        tail = vocabulary.decode_bytes(prompt_tail[-_TAIL_TOKENS:])
        if not tail.isascii():
            self._decode(tail, final=False)
        self._stops = tuple(filter(None, stops))
        self._held = ""  # may become a stop string
        self._strip_space = strip_space
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; from then on there is no more text."""
        return self._stopped

    def push(self, ids: Sequence[int], final: bool = False) -> Piece:
        """The text that `ids` complete. After the last ids, or with none, `final` flushes what was held back."""
        if self._stopped:
            return Piece("", 0, True)
        unfinished, strip_space = self._unfinished, self._strip_space
        new = self._decode(self._vocabulary.decode_bytes(ids), final)
        if not self._stops:
            return Piece(new, len(ids), False)
        buffer = self._held + new
        matches = [(start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if matches:
            end, start = min(matches)
            self._stopped = True
            self._unfinished, self._strip_space = unfinished, strip_space
            return Piece(buffer[:start], self._tokens_until(end - len(self._held), ids), True)
        keep = 0 if final else max(_overlap(buffer, stop) for stop in self._stops)
        sent = len(buffer) - keep
        self._held = buffer[sent:]
        return Piece(buffer[:sent], len(ids), False)

    def _decode(self, data: bytes, final: bool) -> str:
        """All that is complete; at the end also what never will be."""
        data = self._unfinished + data
        text, used = codecs.utf_8_decode(data, "mixtral-bytes", final)
        self._unfinished = data[used:]
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text

    def _tokens_until(self, length: int, ids: Sequence[int]) -> int:
        """How many of `ids` it takes to say so many characters: decoded again, one by one."""
        for count, token_id in enumerate(ids, 1):
            length -= len(self._decode(self._vocabulary.decode_bytes([token_id]), final=False))
            if length <= 0:
                return count
        return len(ids)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
