"""What each token id stands for in bytes, so that text can be decoded token by token without a window.

Mixtral's tokenizer is a SentencePiece BPE with byte fallback: the text of a sequence is the concatenation of its
pieces, `▁` being a space and `<0xE2>` one byte. So every token has fixed bytes, and only UTF-8 itself needs state.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mixtral_runtime.errors import CheckpointError

SPACE = "▁"  # SentencePiece's visible space
_PROBES = (
    "Hello, world.",
    " two  spaces",
    "line\nbreak\ttab",
    "naïve café €5",
    "你好 สวัสดี 안녕 👩\u200d👩\u200d👧 🏳️\u200d🌈",
)


@dataclass(frozen=True)
class Vocabulary:
    """token_bytes[id]: UTF-8 bytes, possibly a part of a character; empty for special tokens, which have no text."""

    token_bytes: list[bytes]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of a sequence. Ids outside the vocabulary (a padded head can produce them) have no text."""
        token_bytes, size = self.token_bytes, len(self.token_bytes)
        if len(ids) == 1 and 0 <= ids[0] < size:  # nearly all calls of a stream
            return token_bytes[ids[0]]
        return b"".join([token_bytes[i] for i in ids if 0 <= i < size])

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Vocabulary":
        """Raises CheckpointError when the tokenizer's own decoding is not the concatenation of its tokens."""
        backend: Tokenizer = tokenizer.backend_tokenizer
        decoder = json.loads(backend.to_str()).get("decoder") or {}
        kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
        byte_level = "ByteLevel" in kinds
        token_bytes = [b""] * backend.get_vocab_size(with_added_tokens=True)
        for token, index in backend.get_vocab(with_added_tokens=True).items():
            token_bytes[index] = _from_byte_level(token) if byte_level else _from_sentencepiece(token)
        for index, added in backend.get_added_tokens_decoder().items():
            token_bytes[index] = b"" if added.special else added.content.encode()
        vocabulary = cls(token_bytes)
        for probe in _PROBES:
            ids = backend.encode(probe, add_special_tokens=False).ids
            ours = vocabulary.decode_bytes(ids).decode(errors="replace")
            theirs = backend.decode(ids)
            if ours not in (theirs, " " + theirs):  # the decoder strips the space that the encoder puts in front
                raise CheckpointError(
                    f"this tokenizer cannot be streamed: its tokens for {probe!r} join to {ours!r} "
                    f"but it decodes them to {theirs!r}"
                )
        return vocabulary


def _from_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _from_byte_level(token: str) -> bytes:
    table = _byte_level_table()
    return bytes(table[char] for char in token) if all(char in table for char in token) else token.encode()


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the rest follows at 256."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(256 + n): byte for n, byte in enumerate(others)}
