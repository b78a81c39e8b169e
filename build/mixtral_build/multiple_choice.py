"""Accuracy on multiple choice: of the letters A, B, C, ... the one that the model finds likeliest after `Answer:`.

Prompts are those of MMLU (Hendrycks et al. 2021, arXiv:2009.03300): a heading with the subject, examples with their
answers, and the question.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from mixtral_build.layer_source import LayerSource
from mixtral_build.layerwise import HiddenStates, Samples, logits_chunks, run_layers
from mixtral_build.questions import LETTERS, Question
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.tokenizer import encode_prompt


@dataclass(frozen=True, slots=True)
class SubjectAccuracy:
    accuracy: float
    questions: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """standard_error: of the accuracy, binomial, sqrt(p (1 - p) / questions). shots: examples before each question;
    shortened: questions before which there are fewer, because the prompt would exceed the model's context."""

    accuracy: float
    standard_error: float
    questions: int
    shots: int
    shortened: int
    subjects: dict[str, SubjectAccuracy]


def evaluate_multiple_choice(
    source: LayerSource,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    examples: Sequence[Question],
    *,
    shots: int,
    progress: Callable[[int, int], object] | None = None,
) -> Accuracy:
    """Each question is preceded by the first `shots` examples of its subject. progress: layers done and their total.

    Raises InvalidArgument when a subject has fewer examples, or a question without any is longer than the context.
    """
    by_subject = _examples_by_subject(questions, examples, shots)
    prompts = [
        _Prompt.fitting(question, by_subject[question.subject], tokenizer, source.config.max_position_embeddings)
        for question in questions
    ]
    likelihoods = answer_log_likelihoods(source, [prompt.answers for prompt in prompts], progress)
    right: dict[str, list[bool]] = defaultdict(list)
    for question, scores in zip(questions, likelihoods, strict=True):
        right[question.subject or ""].append(max(range(len(scores)), key=scores.__getitem__) == question.answer)
    accuracy = sum(map(sum, right.values())) / len(questions)
    return Accuracy(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(questions)),
        questions=len(questions),
        shots=shots,
        shortened=sum(prompt.shots < shots for prompt in prompts),
        subjects={
            subject: SubjectAccuracy(sum(one) / len(one), len(one)) for subject, one in sorted(right.items()) if subject
        },
    )


def render(question: Question, examples: Sequence[Question]) -> str:
    """The prompt up to `Answer:`; an answer is a space and a letter."""
    about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
    parts = [f"The following are multiple choice questions (with answers){about}.\n\n"]
    parts += [f"{_body(example)} {LETTERS[example.answer]}\n\n" for example in examples]
    return "".join(parts) + _body(question)


def answer_log_likelihoods(
    source: LayerSource,
    questions: Sequence[Sequence[tuple[int, Sequence[int]]]],
    progress: Callable[[int, int], object] | None = None,
) -> list[list[float]]:
    """questions: for each, its answers as (tokens before the answer, all token ids with the answer's at the end).

    Returns the log likelihood of each answer's tokens. Answers that share all but their last token, as single letters
    do, are computed from one pass over what they share.
    """
    samples: dict[tuple[int, ...], int] = {}
    wanted: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)  # by sample: question, answer, row, token
    for q, answers in enumerate(questions):
        for a, (before, ids) in enumerate(answers):
            sample = samples.setdefault(tuple(ids[:-1]), len(samples))
            wanted[sample] += [(q, a, position - 1, ids[position]) for position in range(before, len(ids))]
    states = run_layers(source, Samples(list(samples)), progress=progress)
    return _gather(source, states, wanted, [[0.0] * len(answers) for answers in questions])


@torch.inference_mode()
def _gather(
    source: LayerSource,
    states: HiddenStates,
    wanted: dict[int, list[tuple[int, int, int, int]]],
    likelihoods: list[list[float]],
) -> list[list[float]]:
    for sample, start, logits in logits_chunks(source, states):
        here = [entry for entry in wanted[sample] if start <= entry[2] < start + len(logits)]
        rows = sorted({row for _, _, row, _ in here})
        log_probs = dict(zip(rows, logits[[row - start for row in rows]].double().log_softmax(-1), strict=True))
        for q, a, row, token in here:
            likelihoods[q][a] += float(log_probs[row][token])
    return likelihoods


@dataclass(frozen=True, slots=True)
class _Prompt:
    """answers: as in `answer_log_likelihoods`. shots: examples that found room."""

    answers: list[tuple[int, list[int]]]
    shots: int

    @classmethod
    def fitting(
        cls, question: Question, examples: Sequence[Question], tokenizer: PreTrainedTokenizerFast, limit: int
    ) -> "_Prompt":
        """With as many of the examples, from the first on, as the context has room for."""
        for shots in range(len(examples), -1, -1):
            prompt = render(question, examples[:shots])
            answers = [_answer(tokenizer, prompt, letter) for letter in LETTERS[: len(question.choices)]]
            longest = max(len(ids) - 1 for _, ids in answers)  # the last token is predicted, not read
            if longest <= limit:
                return cls(answers, shots)
        raise InvalidArgument(
            f"a question has {longest} tokens without any example, the model's limit is {limit}: "
            f"{question.question[:60]!r}"
        )


def _answer(tokenizer: PreTrainedTokenizerFast, prompt: str, letter: str) -> tuple[int, list[int]]:
    """The answer's tokens are those after the part that its text has in common with the prompt alone."""
    alone, ids = encode_prompt(tokenizer, prompt), encode_prompt(tokenizer, f"{prompt} {letter}")
    common = next((i for i, pair in enumerate(zip(alone, ids, strict=False)) if pair[0] != pair[1]), len(alone))
    return min(common, len(ids) - 1), ids


def _body(question: Question) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.question}\n{choices}Answer:"


def _examples_by_subject(
    questions: Sequence[Question], examples: Sequence[Question], shots: int
) -> dict[str | None, list[Question]]:
    found: dict[str | None, list[Question]] = defaultdict(list)
    for example in examples:
        found[example.subject].append(example)
    for subject in {question.subject for question in questions}:
        if len(found[subject]) < shots:
            raise InvalidArgument(
                f"the subject {subject or '(none)'} has {len(found[subject])} examples, --shots asks for {shots}"
            )
        found[subject] = found[subject][:shots]
    return found
