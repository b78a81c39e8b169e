"""What the soak asks and what must come back, token by token."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from synthetic_tokens import END_TOKEN, FIRST_TOKEN, expected_tokens
from tokenizers import Tokenizer

MAX_TOKENS = 300
UNFINISHED_BYTES = 3  # at most, of a UTF-8 character


@dataclass(frozen=True, slots=True)
class Question:
    """prompt, tokens: ids, and the `MAX_TOKENS` that answer them."""

    prompt: list[int]
    tokens: list[int]


class Questions:
    """Prompts with known answers. The synthetic engine's follow from the prompt, so each is a new one; of a real engine
    (`pool`) they are what it said to the same prompt when nothing else ran."""

    def __init__(self, seed: int, pool: Path | None = None) -> None:
        self._random = random.Random(seed)
        self._pool = [Question(**q) for q in json.loads(pool.read_text())] if pool else None

    def draw(self) -> Question:
        if self._pool is not None:
            return self._random.choice(self._pool)
        prompt = random_prompt(self._random)
        return Question(prompt, expected_tokens(prompt, MAX_TOKENS))


def random_prompt(numbers: random.Random) -> list[int]:
    """Mostly short, sometimes of some thousand tokens; ordinary pieces of text."""
    length = numbers.choice([3, 8, 20, 60, 200, 1000])
    return [1, *(numbers.randrange(FIRST_TOKEN, END_TOKEN) for _ in range(length))]


class Decoder:
    """The tokenizer's own decoding, which shares no code with what is served."""

    def __init__(self, tokenizer_dir: Path) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        self._special = {i for i, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """What `tokens` add to the prompt's text; a token in front keeps their first space."""
        before = self._tokenizer.decode(list(prompt[-1:]))
        whole: str = self._tokenizer.decode([*prompt[-1:], *tokens])
        return whole[len(before) :]

    def known(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[str, bool]:
        """The text as far as it is decoded as a stream must be, and whether that is all: it joins characters across
        special tokens, and marks all bytes in a row when one of them belongs to no whole character."""
        ordinary = list(takewhile(lambda token: token not in self._special, tokens))
        known, mark, _ = self.text(prompt, ordinary).partition("\ufffd")
        return known, not mark and len(ordinary) == len(tokens)


def faults(
    decoder: Decoder,
    question: Question,
    ids: list[int],
    text: str,
    *,
    tokens: int | None,
    stop: str = "",
    flushed: bool = False,
) -> list[str]:
    """What is wrong with an answer. tokens: how many it must have, None when it was cut short. stop: a stop string.
    flushed: the server cut it, and so ended it with what it had of an unfinished character, a mark for each byte."""
    expected = question.tokens if tokens is None or stop else question.tokens[:tokens]
    found = []
    if ids != expected[: len(ids)]:
        found.append(kind_of_disorder(ids, expected))
    elif not stop and tokens is not None and len(ids) != tokens:
        found.append("lost")
    known, complete = decoder.known(question.prompt, question.tokens[:tokens])
    if stop:
        known, complete = known[: known.find(stop)], True
    elif flushed:
        text = text[:-UNFINISHED_BYTES] + text[-UNFINISHED_BYTES:].rstrip("\ufffd")
    # Text of a cut answer may lag behind its ids by an unfinished character.
    cut_short = tokens is None and known.startswith(text)
    if not (text == known or cut_short or (not complete and text.startswith(known))):
        found.append("text")
    return found


def kind_of_disorder(ids: list[int], expected: list[int]) -> str:
    """`order`: the right tokens in another order; `lost`, `duplicated`: fewer or more than there were; or `foreign`."""
    got, known = Counter(ids), Counter(expected[: len(ids)])
    if got == known:
        return "order"
    if set(got) - set(expected):
        return "foreign"
    at = next(i for i, token in enumerate(ids) if i >= len(expected) or token != expected[i])
    return "duplicated" if ids[at] in expected[:at] else "lost"
