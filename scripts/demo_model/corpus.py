"""Documents of the demo corpus: the mix of kinds, the chat markup, and the stream used for training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from demo_model import tasks
from demo_model.draw import FIXED, Draw, Side, TryAgain, sentences
from demo_model.facts import fact_chat
from demo_model.stories import story, story_request

# Shares of the kinds among the training documents.
MIX = {"facts": 0.44, "story": 0.11, "story_chat": 0.05, "lists": 0.11, "who_has": 0.10, "sums": 0.04, "general": 0.06,
       "echo": 0.04, "mixed": 0.05}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One text with its chat markup, as the tokenizer reads it (``<s>`` to ``</s>``)."""

    text: str
    kind: str
    hard: bool


def chat_text(turns: list[tuple[str, str]]) -> str:
    """The turns in the markup of the chat template."""
    return "<s>" + "".join(f" [INST] {user} [/INST] {reply}</s>" for user, reply in turns)


def _turns(d: Draw, kind: str) -> list[tuple[str, str]]:
    if kind == "facts":
        return fact_chat(d)
    if kind == "story_chat":
        return [story_request(d)]
    if kind == "mixed":
        # One long conversation over several tasks, so that old facts must be told from new ones.
        parts = d.some(["facts", "lists", "who_has", "general", "facts", "sums"], d.between(2, 4))
        return [turn for part in parts for turn in _turns(d, part)]
    make = {"lists": tasks.lists, "who_has": tasks.who_has, "sums": tasks.sums, "general": tasks.general}[kind]
    return make(d)


def document(rng: random.Random, kind: str, side: Side = "train", hard: bool = False) -> Document:
    """One document of a kind, redrawn until every sentence of it belongs to the side."""
    while True:
        d = Draw(rng, side, hard)
        try:
            if kind == "story":
                text = f"<s>{story(d)}</s>"
            elif kind == "echo":
                text = f"<s>{tasks.echo_text(d)}</s>"
            else:
                text = chat_text(_turns(d, kind))
        except TryAgain:
            continue
        found = sentences(text)
        empty = side == "heldout" and FIXED.issuperset(found)  # a greeting alone holds nothing to test
        if all(d.fits(s) for s in found) and not empty:
            return Document(text, kind, hard)


def training_documents(seed: int, chunk: int, count: int) -> list[Document]:
    """The documents of one chunk of the endless training stream; a quarter is of the hard sort."""
    rng = random.Random(f"demo corpus {seed} {chunk}")
    kinds, shares = list(MIX), list(MIX.values())
    return [document(rng, rng.choices(kinds, shares)[0], "train", rng.random() < 0.25) for _ in range(count)]


def training_stream(seed: int, chunk_size: int = 2048) -> Iterator[list[Document]]:
    chunk = 0
    while True:
        yield training_documents(seed, chunk, chunk_size)
        chunk += 1


def heldout_documents(seed: int, per_kind: dict[str, int]) -> list[Document]:
    """The held-out documents: for each kind so many plain and as many hard ones, without repeated texts."""
    rng = random.Random(f"demo held-out {seed}")
    found: dict[str, Document] = {}
    for kind, count in per_kind.items():
        for hard in (False, True):
            wanted = len(found) + count
            while len(found) < wanted:
                made = document(rng, kind, "heldout", hard)
                found.setdefault(made.text, made)
    return list(found.values())
