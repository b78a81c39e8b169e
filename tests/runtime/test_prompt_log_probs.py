"""Log probabilities of prompts: those of transformers, for any chunking, without the logits of a whole prompt."""

from typing import Any

import pytest
import torch
from reference_model import reference_model

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import Request
from mixtral_runtime.pytorch.model import MixtralModel
from mixtral_runtime.pytorch.step import LOGITS_ROWS

PROMPT = [(13 * i * i + i) % 160 for i in range(380)]


class WatchedModel(MixtralModel):
    """The real model, which notes how many rows of logits were made at once."""

    most_rows = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.most_rows = max(self.most_rows, len(hidden))
        return super().logits(hidden)


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint) -> WatchedModel:
    return WatchedModel.load(checkpoint, "cpu", torch.float32)


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> list[float]:
    """What transformers gives to the tokens of PROMPT, from its logits in float32 normalised in float64."""
    with torch.inference_mode():
        logits = reference_model(checkpoint)(torch.tensor([PROMPT])).logits[0]
    following = torch.tensor(PROMPT[1:])[:, None]
    log_probs: list[float] = logits.double().log_softmax(-1)[:-1].gather(1, following)[:, 0].tolist()
    return log_probs


@pytest.mark.parametrize("tokens_a_step", [8, 100, 379, 512])
def test_they_are_those_of_transformers_for_any_chunking(
    make_engine: Any, collect: Any, exact: WatchedModel, expected: list[float], tokens_a_step: int
) -> None:
    engine = make_engine(exact, max_num_tokens=tokens_a_step)
    request_id = engine.submit(Request(PROMPT, 1, return_prompt_log_probs=True))
    found = collect(engine, request_id)[request_id]
    assert len(found.prompt_log_probs) == len(PROMPT) - 1
    assert found.prompt_log_probs == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("length", [1, 2, LOGITS_ROWS, LOGITS_ROWS + 1, LOGITS_ROWS + 2])
def test_there_is_one_for_every_token_but_the_first(
    make_engine: Any, collect: Any, exact: WatchedModel, expected: list[float], length: int
) -> None:
    engine = make_engine(exact)
    request_id = engine.submit(Request(PROMPT[:length], 1, return_prompt_log_probs=True))
    found = collect(engine, request_id)[request_id]
    assert found.prompt_log_probs == pytest.approx(expected[: length - 1], abs=2e-4)


def test_the_logits_of_long_prompts_are_never_held_at_once(
    make_engine: Any, collect: Any, checkpoint: Checkpoint, expected: list[float]
) -> None:
    """Four prompts of 380 tokens in steps that could hold all of one."""
    model = WatchedModel.load(checkpoint, "cpu", torch.float32)
    engine = make_engine(model, max_num_tokens=512)
    ids = [engine.submit(Request(PROMPT, 2, return_prompt_log_probs=True)) for _ in range(4)]
    found = collect(engine, *ids)
    for request_id in ids:
        assert found[request_id].prompt_log_probs == pytest.approx(expected, abs=2e-4)
    assert model.most_rows == LOGITS_ROWS
