"""Random choices of the demo grammar, and the rule that keeps held-out sentences out of the training text.

Every sentence has a side, decided by a hash of its characters: one sentence in eight is reserved for the held-out set.
The same holds for made-up words. A training document is thrown away if one of its sentences is reserved, and a held-out
document if one of its sentences is neither reserved nor has a reserved word; so no held-out sentence can occur in
training, for any seed. Exempt are only the sentences without content of their own listed in ``FIXED``. General
knowledge (``lexicon.KNOWLEDGE``) is never held out, because what was not taught cannot be known.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from demo_model import lexicon as lx

T = TypeVar("T")
Side = Literal["train", "heldout"]
RESERVED_ONE_IN = 8
MAX_TRIES = 120

_MARKUP = re.compile(r"</?s>|\[/?INST\]|\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

_FIXED_TEXT = """
What is my name?|Who am I?|How old am I?|Where do I live?|Do you know my name?|Do you remember my name?
What am I called?|What is my lucky number?|What is my favorite food?|What is my favorite animal?
What is my favorite color?|What is my job?|What is the code word?|What is the secret word?|What is the password?
Which word did I tell you?|What did I say?|What is the room number?|What is the price?|How much is it?
How many words are there?|What is the first word?|What is the last word?|What is the second word?
Repeat the list.|Say it again.|Who is it?|Where is it?|What is it?|Please answer.|Please remember it.
Please remember this.|Thank you!|Thank you.|Thanks!|You are welcome!|Hello!|Hi!|Good morning!
Hello! How can I help you?|How can I help you?|How are you?|I am fine, thank you.|Goodbye!|Bye!
Goodbye! See you soon!|See you soon!|OK.|OK, I will remember that.|I will remember that.|Got it.|Good.|Yes.|No.
Answer the question.|Tell me a story.|Tell me a short story.|Please tell me a story.|The end.|Who are you?
I am a small demo model.|What can you do?|I can tell stories and answer small questions.|Listen to this.
Read this.|Here is a short text.|Here are some facts.|What is the total?|Repeat this.|Where do I work?
What do I do?|That is good to know.
"""

FIXED = frozenset(_FIXED_TEXT.strip().replace("\n", "|").split("|"))


class TryAgain(Exception):
    """The choices made so far cannot be completed on the wanted side."""


def reserved(text: str) -> bool:
    """Whether this sentence, or made-up word, belongs to the held-out side."""
    return zlib.crc32(text.encode()) % RESERVED_ONE_IN == 0


def sentences(text: str) -> list[str]:
    """The sentences of a document with chat markup removed."""
    parts = (s.strip() for turn in _MARKUP.split(text) for s in _SENTENCE_END.split(turn.strip()))
    return [s for s in parts if s]


class Draw:
    """Seeded choices for one document. ``hard`` draws only made-up names and longer material."""

    def __init__(self, rng: random.Random, side: Side = "train", hard: bool = False) -> None:
        self.rng = rng
        self.side = side
        self.hard = hard
        self.novel: set[str] = set()

    def one(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        return self.rng.sample(items, count)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def between(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def word(self) -> str:
        """A made-up word of one to four syllables that the other side never produces."""
        for _ in range(400):
            syllables = self.one((1, 2, 2, 2, 3, 3, 4) if self.hard else (1, 2, 2, 2, 2, 3))
            word = "".join(self.one(lx.ONSETS) + self.one(lx.VOWELS) for _ in range(syllables))
            if self.chance(0.5):
                word += self.one(lx.CODAS)
            if self.chance(0.06):
                plain = self.one([c for c in word if c in lx.ACCENTS] or ["q"])
                word = word.replace(plain, lx.ACCENTS.get(plain, "q"), 1)
            if len(word) > 2 and word not in lx.CLOSED and reserved(word) == (self.side == "heldout"):
                self.novel.add(word)
                return word
        raise TryAgain

    def code(self) -> str:
        """Something to copy: mostly a made-up word, sometimes a number, foreign letters or an emoji."""
        roll = self.rng.random()
        if roll < 0.72:
            word = self.word()
            return word.upper() if roll < 0.05 else word.capitalize() if roll < 0.15 else word
        if roll < 0.82:
            return "".join(self.one("0123456789") for _ in range(self.between(2, 5)))
        if roll < 0.88:
            return f"{self.word()}{self.between(1, 99)}"
        if roll < 0.92:
            return "".join(self.one(lx.GREEK_LETTERS) for _ in range(self.between(2, 5)))
        if roll < 0.96:
            return "".join(self.one(lx.HAN) for _ in range(self.between(1, 3)))
        return self.one(lx.EMOJI)

    def name(self) -> str:
        if not self.hard and self.chance(0.45):
            return self.one(lx.NAMES)
        return self.word().capitalize()

    def names(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            name = self.name()
            if name not in found:
                found.append(name)
        return found

    def fits(self, sentence: str) -> bool:
        """Whether the sentence may stand in a document of this side."""
        if sentence in FIXED:
            return True
        if self.side == "train":
            return not reserved(sentence) or sentence in lx.KNOWLEDGE
        if sentence in lx.KNOWLEDGE:
            return False
        return reserved(sentence) or any(w.lower() in self.novel for w in re.findall(r"\w+", sentence))

    def say(self, make: Callable[[], str]) -> str:
        """Redraw text until all its sentences fit, so that long documents need few fresh starts."""
        for _ in range(MAX_TRIES):
            text = make()
            if all(self.fits(s) for s in sentences(text)):
                return text
        raise TryAgain
