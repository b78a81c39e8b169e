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
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
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
        self._token_bytes = vocabulary.token_bytes
        self._decoder = _Utf8Decoder("mixtral-bytes")
        self._decoder.decode(vocabulary.decode_bytes(list(prompt_tail[-_TAIL_TOKENS:])))
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""  # may become a stop string
        self._strip_space = strip_space
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; from then on there is no more text."""
        return self._stopped

    def push(self, ids: Sequence[int], final: bool = False) -> Piece:
        """The text that `ids` complete. After the last ids, or with none, `final` flushes what was held back."""
        text: list[str] = []
        used = 0
        for token_id in ids:
            if self._stopped:
                break
            used += 1
            token = self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""
            text.append(self._release(self._decoder.decode(token)))
        if final and not self._stopped:
            text.append(self._release(self._decoder.decode(b"", final=True)))
            if not self._stopped:
                text.append(self._held)
                self._held = ""
        return Piece("".join(text), used, self._stopped)

    def _release(self, new: str) -> str:
        if not new:
            return ""
        if self._strip_space:
            self._strip_space = False
            new = new.removeprefix(" ")
        if not self._stops:
            return new
        buffer = self._held + new
        matches = [(start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if matches:
            self._stopped = True
            self._held = ""
            return buffer[: min(matches)[1]]
        keep = max(_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
