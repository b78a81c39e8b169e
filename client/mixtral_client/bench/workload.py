"""What is asked: for every request index a prompt and an output length, the same on every run with the same seed."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

# Mixtral's vocabulary begins with <unk>, <s>, </s> and the 256 single bytes. A byte alone is half a character, and
# special tokens mean something to the model, so synthetic prompts keep to the ids after them.
FIRST_ORDINARY_ID = 259
FILE_OUTPUT_TOKENS = 128
_LENGTHS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A token count drawn evenly from low to high, both included; the two may be equal."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Of "512" or "100-500". Raises ValueError with one sentence."""
        match = _LENGTHS.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a length such as 512 or a range such as 100-500")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise ValueError(f"{text!r} must run from at least 1 upwards")
        return cls(low, high)

    def scaled(self, factor: float) -> "Lengths":
        return Lengths(max(1, round(self.low * factor)), max(1, round(self.high * factor)))

    def draw(self, random: np.random.Generator) -> int:
        return int(random.integers(self.low, self.high, endpoint=True))

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: exactly one of input_ids and text."""

    input_ids: list[int] | None
    text: str | None
    max_tokens: int


class PromptSource(Protocol):
    """Gives the prompt of a request index."""

    def prompt(self, index: int) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class SyntheticPrompts:
    """Random ordinary tokens of exactly the drawn lengths.

    shared_prefix: the share of each prompt, from its first token on, that is the same in all prompts (as far as they
    reach). vocab_size: ids are below it.
    """

    input_tokens: Lengths
    output_tokens: Lengths
    shared_prefix: float
    seed: int
    vocab_size: int

    def prompt(self, index: int) -> Prompt:
        random = np.random.default_rng((self.seed, index))
        length, max_tokens = self.input_tokens.draw(random), self.output_tokens.draw(random)
        return Prompt(_random_ids(self.seed, random, length, self.shared_prefix, self.vocab_size), None, max_tokens)


@dataclass(frozen=True, slots=True)
class DollyLikePrompts:
    """Random tokens with lengths spread like those of short instructions and answers such as Databricks Dolly's.

    Log-normal lengths: an instruction with a median of 14 tokens, in 30 % of the prompts a context with a median of
    220, and an answer with a median of 60. These are round figures of our own choice for that kind of text, not
    statistics of the data set; for its real prompts give the file.
    """

    shared_prefix: float
    seed: int
    vocab_size: int
    scale: float = 1.0

    MAX_INPUT: ClassVar[int] = 1024
    MAX_OUTPUT: ClassVar[int] = 512
    MEAN_OUTPUT: ClassVar[float] = 92.0  # of the log-normal lengths, cut at the most

    def prompt(self, index: int) -> Prompt:
        random = np.random.default_rng((self.seed, index))
        instruction = random.lognormal(np.log(14), 0.7)
        context = random.lognormal(np.log(220), 0.8) if random.random() < 0.3 else 0.0
        answer = random.lognormal(np.log(60), 1.0)
        length = self._scaled(instruction + context, self.MAX_INPUT)
        ids = _random_ids(self.seed, random, length, self.shared_prefix, self.vocab_size)
        return Prompt(ids, None, self._scaled(answer, self.MAX_OUTPUT))

    def longest(self) -> tuple[int, int]:
        """The most tokens that a prompt and an output can have."""
        return self._scaled(self.MAX_INPUT, self.MAX_INPUT), self._scaled(self.MAX_OUTPUT, self.MAX_OUTPUT)

    def _scaled(self, length: float, limit: int) -> int:
        return max(1, round(min(length, limit) * self.scale))


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """Texts from a file, in an order shuffled by the seed; after the last one they begin again."""

    texts: Sequence[str]
    output_tokens: Lengths
    seed: int

    def prompt(self, index: int) -> Prompt:
        random = np.random.default_rng((self.seed, index))
        round_, place = divmod(index, len(self.texts))
        text = self.texts[_order(self.seed, round_, len(self.texts))[place]]
        return Prompt(None, text, self.output_tokens.draw(random))


@functools.lru_cache(maxsize=2)
def _order(seed: int, round_: int, texts: int) -> list[int]:
    """A permutation, so that no text comes twice before all have come once."""
    order: list[int] = np.random.default_rng((seed, 2**32 + 1, round_)).permutation(texts).tolist()
    return order


def _random_ids(
    seed: int, random: np.random.Generator, length: int, shared_prefix: float, vocab_size: int
) -> list[int]:
    first = FIRST_ORDINARY_ID if vocab_size > 2 * FIRST_ORDINARY_ID else min(3, vocab_size - 1)
    shared = int(shared_prefix * length)
    # A generator of its own gives the same first ids whatever number of them is drawn.
    prefix = np.random.default_rng((seed, 2**32)).integers(first, vocab_size, shared)
    return [*prefix.tolist(), *random.integers(first, vocab_size, length - shared).tolist()]
