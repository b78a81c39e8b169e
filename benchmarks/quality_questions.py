"""Multiple-choice questions made of the demo model's held-out text: which of four answers was given?"""

import json
import random
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

SUBJECTS = ("facts", "who_has", "sums")
CHOICES = 4
EXAMPLES = 5  # for each subject, not among the questions
SEED = 5
_TURN = re.compile(r"<s> \[INST\] (.*?) \[/INST\] (.*?)</s>", re.DOTALL)


def write_questions(heldout: Path, test: Path, dev: Path, questions: int | None = None) -> None:
    """JSON Lines as `mixtral eval multiple-choice` and `mixtral-build evaluate` read them: the first turn of each text
    of these kinds, its answer among three of other texts. questions: so many at most, evenly of the subjects."""
    turns: dict[str, list[tuple[str, str]]] = {subject: [] for subject in SUBJECTS}
    for line in heldout.read_text(encoding="utf-8").split("\n"):
        record = json.loads(line) if line else {}
        match = _TURN.match(record.get("text", ""))
        if match and record["kind"] in turns:
            turns[record["kind"]].append((match[1], match[2]))
    rng = random.Random(SEED)
    found = {subject: [_question(rng, subject, turn, found) for turn in found] for subject, found in turns.items()}
    in_turn = zip_longest(*(one[EXAMPLES:] for one in found.values()))
    _write(dev, [question for one in found.values() for question in one[:EXAMPLES]])
    _write(test, [question for row in in_turn for question in row if question is not None][:questions])


def _question(rng: random.Random, subject: str, turn: tuple[str, str], turns: list[tuple[str, str]]) -> dict[str, Any]:
    asked, right = turn
    others = sorted({answer for _, answer in turns} - {right})
    choices = [right, *rng.sample(others, CHOICES - 1)]
    rng.shuffle(choices)
    return {"question": asked, "choices": choices, "answer": choices.index(right), "subject": subject}


def _write(path: Path, questions: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions), encoding="utf-8")
