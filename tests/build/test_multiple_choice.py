"""Accuracy on multiple choice, with likelihoods that transformers gives token by token."""

import math
from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM

from mixtral_build.layer_source import HfLayerSource
from mixtral_build.multiple_choice import answer_log_likelihoods, evaluate_multiple_choice, render
from mixtral_build.questions import LETTERS, Question
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tokenizer import encode_prompt, load_tokenizer

QUESTIONS = [
    Question("f g", ("x", "y", "z", "w"), 1, "high_school_birds"),
    Question("h", ("p", "q", "r", "s"), 3, "high_school_birds"),
    Question("a b c", ("1", "2", "3", "4"), 0, "stars"),
]
EXAMPLES = [
    Question(f"e {number}", ("a", "b", "c", "d"), number, subject)
    for subject in ("stars", "high_school_birds")
    for number in (1, 2)
]


def test_the_prompt_is_mmlus() -> None:
    example = Question("1 + 1?", ("2", "3", "4", "5"), 0, "abstract_algebra")
    question = Question("2 + 2?", ("2", "3", "4", "5"), 2, "abstract_algebra")
    assert render(question, [example]) == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "1 + 1?\nA. 2\nB. 3\nC. 4\nD. 5\nAnswer: A\n\n"
        "2 + 2?\nA. 2\nB. 3\nC. 4\nD. 5\nAnswer:"
    )
    assert render(Question("q", ("x", "y"), 0), []) == (
        "The following are multiple choice questions (with answers).\n\nq\nA. x\nB. y\nAnswer:"
    )


def test_likelihoods_are_those_of_transformers(saved_model: Path) -> None:
    """Single letters after a shared prompt, and answers of several tokens that differ in length."""
    questions = [
        [(4, [1, 5, 9, 3, 20]), (4, [1, 5, 9, 3, 21])],
        [(2, [7, 8, 30, 31, 32]), (2, [7, 8, 33]), (2, [7, 8, 30, 31, 34])],
    ]
    found = answer_log_likelihoods(HfLayerSource(saved_model), questions)
    model = MixtralForCausalLM.from_pretrained(saved_model, dtype=torch.float32).eval()
    for answers, scores in zip(questions, found, strict=True):
        for (before, ids), score in zip(answers, scores, strict=True):
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = sum(float(log_probs[i - 1, ids[i]]) for i in range(before, len(ids)))
            assert score == pytest.approx(expected, abs=1e-4)


def test_accuracy_counts_the_likeliest_letters(model_with_tokenizer: Path) -> None:
    """Each answer is one token here, so the likeliest is the letter with the largest logit after the prompt."""
    tokenizer = load_tokenizer(model_with_tokenizer)
    model = MixtralForCausalLM.from_pretrained(model_with_tokenizer, dtype=torch.float32).eval()
    right = []
    for question in QUESTIONS:
        examples = [example for example in EXAMPLES if example.subject == question.subject]
        with torch.no_grad():
            logits = model(torch.tensor([encode_prompt(tokenizer, render(question, examples))])).logits[0, -1]
        letters = [float(logits[ord(letter) - ord("!")]) for letter in LETTERS[:4]]
        right.append(letters.index(max(letters)) == question.answer)
    found = evaluate_multiple_choice(HfLayerSource(model_with_tokenizer), tokenizer, QUESTIONS, EXAMPLES, shots=2)
    share = sum(right) / 3
    assert found.accuracy == share
    assert found.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 3))
    assert (found.questions, found.shots, found.shortened) == (3, 2, 0)
    birds = found.subjects["high_school_birds"]
    assert (birds.accuracy, birds.questions) == (sum(right[:2]) / 2, 2)
    assert found.subjects["stars"].questions == 1


def test_always_right_and_always_wrong(model_with_tokenizer: Path) -> None:
    """The same question with each letter as its answer: exactly one of them is right."""
    tokenizer, source = load_tokenizer(model_with_tokenizer), HfLayerSource(model_with_tokenizer)
    copies = [Question("f", ("x", "y", "z"), answer) for answer in range(3)]
    assert evaluate_multiple_choice(source, tokenizer, copies, [], shots=0).accuracy == pytest.approx(1 / 3)


def test_examples_that_find_no_room_are_left_out(model_with_tokenizer: Path) -> None:
    """A model of 128 tokens: the prompt of this question has 26, each example 65 more."""
    tokenizer, source = load_tokenizer(model_with_tokenizer), HfLayerSource(model_with_tokenizer)
    long = [Question("e " * 50, ("a", "b", "c", "d"), 0) for _ in range(3)]
    found = evaluate_multiple_choice(source, tokenizer, [Question("f", ("x", "y", "z", "w"), 0)], long, shots=3)
    assert (found.shots, found.shortened) == (3, 1)
    with pytest.raises(InvalidArgument, match=r"a question has \d+ tokens without any .* limit is 128"):
        evaluate_multiple_choice(source, tokenizer, [Question("e " * 200, ("a", "b"), 0)], [], shots=0)


def test_a_subject_with_too_few_examples_is_named(model_with_tokenizer: Path) -> None:
    tokenizer, source = load_tokenizer(model_with_tokenizer), HfLayerSource(model_with_tokenizer)
    with pytest.raises(InvalidArgument, match="the subject stars has 2 examples, --shots asks for 5"):
        evaluate_multiple_choice(source, tokenizer, QUESTIONS[2:], EXAMPLES, shots=5)
