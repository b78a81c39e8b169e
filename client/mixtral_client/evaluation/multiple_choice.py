"""Accuracy on multiple choice: of the letters A, B, C, ... the one that the served model finds likeliest after
`Answer:`."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mixtral_client.errors import InvalidArgument
from mixtral_client.evaluation.questions import LETTERS, Question, examples_by_subject, render
from mixtral_client.evaluation.scorer import Progress, Scorer, Scores
from mixtral_client.evaluation.texts import Span


@dataclass(frozen=True, slots=True)
class SubjectAccuracy:
    accuracy: float
    questions: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """standard_error: of the accuracy, binomial, sqrt(p (1 - p) / questions). shots: examples before each question;
    shortened: questions before which there are fewer, because the prompt would exceed the server's longest."""

    accuracy: float
    standard_error: float
    questions: int
    shots: int
    shortened: int
    subjects: dict[str, SubjectAccuracy]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """answers: a span for each choice. shots: examples that found room."""

    question: Question
    answers: list[Span]
    shots: int


async def evaluate_multiple_choice(
    scorer: Scorer,
    questions: Sequence[Question],
    examples: Sequence[Question],
    *,
    shots: int,
    longest: int | None,
    progress: Progress | None = None,
) -> tuple[Accuracy | None, Scores]:
    """Of the questions whose answers were all scored; None without any. Each is preceded by the first `shots` examples
    of its subject. longest: tokens of a prompt that the server takes, None for any.

    Raises InvalidArgument when a subject has fewer examples, or a question without any is longer than the longest
    prompt, and what the client raises while it tokenises.
    """
    by_subject = examples_by_subject(questions, examples, shots)
    prompts = await _fitting(scorer, questions, by_subject, shots, longest)
    scores = await scorer.score([answer for prompt in prompts for answer in prompt.answers], progress)
    right: dict[str, list[bool]] = defaultdict(list)
    shortened = 0
    values = iter(scores.log_likelihoods)
    for prompt in prompts:
        likelihoods = [value for value in (next(values) for _ in prompt.answers) if value is not None]
        if len(likelihoods) == len(prompt.answers):
            best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
            right[prompt.question.subject or ""].append(best == prompt.question.answer)
            shortened += prompt.shots < shots
    count = sum(map(len, right.values()))
    if not count:
        return None, scores
    accuracy = sum(map(sum, right.values())) / count
    return Accuracy(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
        questions=count,
        shots=shots,
        shortened=shortened,
        subjects={
            subject: SubjectAccuracy(sum(one) / len(one), len(one)) for subject, one in sorted(right.items()) if subject
        },
    ), scores


async def _fitting(
    scorer: Scorer,
    questions: Sequence[Question],
    examples: dict[str | None, list[Question]],
    shots: int,
    longest: int | None,
) -> list[_Prompt]:
    """Each question with as many of the examples, from the first on, as the server has room for."""
    found: dict[int, _Prompt] = {}
    for tried in range(shots, -1, -1):
        left = [index for index in range(len(questions)) if index not in found]
        texts = [text for i in left for text in _texts(questions[i], examples[questions[i].subject][:tried])]
        ids = iter(await scorer.tokenize(texts))
        for index in left:
            question = questions[index]
            alone = next(ids)
            answers = [_answer(alone, next(ids)) for _ in question.choices]
            length = max(len(answer.token_ids) for answer in answers)
            if longest is None or length <= longest:
                found[index] = _Prompt(question, answers, tried)
            elif tried == 0:
                raise InvalidArgument(
                    f"a question has {length} tokens without any example, the server's longest prompt is {longest}: "
                    f"{question.question[:60]!r}"
                )
    return [found[index] for index in range(len(questions))]


def _texts(question: Question, examples: Sequence[Question]) -> list[str]:
    """The prompt alone, and with each answer."""
    prompt = render(question, examples)
    return [prompt, *(f"{prompt} {letter}" for letter in LETTERS[: len(question.choices)])]


def _answer(alone: Sequence[int], ids: Sequence[int]) -> Span:
    """The answer's tokens are those after the part that its text has in common with the prompt alone."""
    common = next((i for i, pair in enumerate(zip(alone, ids, strict=False)) if pair[0] != pair[1]), len(alone))
    return Span(ids, max(1, min(common, len(ids) - 1)))
