"""The multiple-choice questions made of the demo model's held-out text."""

import json
from collections import Counter
from pathlib import Path

from quality_questions import CHOICES, EXAMPLES, SUBJECTS, write_questions

from mixtral_build.questions import Question, read_questions


def test_questions_and_examples_are_sound_and_apart(demo_model: Path, tmp_path: Path) -> None:
    test, dev = tmp_path / "test.jsonl", tmp_path / "dev.jsonl"
    write_questions(demo_model / "heldout.jsonl", test, dev, questions=60)
    questions, examples = read_questions(test), read_questions(dev)
    assert len(questions) == 60
    assert Counter(example.subject for example in examples) == dict.fromkeys(SUBJECTS, EXAMPLES)
    assert {question.subject for question in questions} == set(SUBJECTS)
    assert not set(questions) & set(examples)
    heldout = [json.loads(line)["text"] for line in (demo_model / "heldout.jsonl").read_text().split("\n") if line]
    for question in [*questions, *examples]:
        assert len(set(question.choices)) == CHOICES
        assert any(text.startswith(_turn(question)) for text in heldout)
    answers = Counter(question.answer for question in questions)
    assert min(answers[letter] for letter in range(CHOICES)) >= 5, "the right letter is a clue"


def _turn(question: Question) -> str:
    return f"<s> [INST] {question.question} [/INST] {question.choices[question.answer]}</s>"
