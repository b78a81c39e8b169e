"""How many bytes of weights a step reads: the memory plan's figure for one token, all weights for very many."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_bytes import Q8_0, experts_met, step_bytes

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.plan import model_size, with_precision


@pytest.mark.parametrize("precision", FORMATS)
def test_one_token_reads_what_the_plan_says(mixtral_8x7b: CheckpointConfig, precision: str) -> None:
    size = model_size(with_precision(mixtral_8x7b, precision))
    assert step_bytes(mixtral_8x7b, precision, 1) == size.active_weights


def test_very_many_tokens_read_everything_but_the_embedding(mixtral_8x7b: CheckpointConfig) -> None:
    embedding = mixtral_8x7b.vocab_size * mixtral_8x7b.hidden_size * 2
    everything = model_size(with_precision(mixtral_8x7b, "int8")).weights - embedding
    assert step_bytes(mixtral_8x7b, "int8", 1000) == pytest.approx(everything, rel=1e-9)


def test_q8_0_takes_8_and_a_half_bits_a_weight(mixtral_8x7b: CheckpointConfig) -> None:
    active = model_size(mixtral_8x7b).active_parameters
    assert step_bytes(mixtral_8x7b, Q8_0, 1) == pytest.approx(active * 8.5 / 8, rel=1e-3)  # norms and router have 32


@given(tokens=st.integers(1, 64), top_k=st.integers(1, 8))
def test_more_tokens_meet_more_experts_and_never_more_than_there_are(tokens: int, top_k: int) -> None:
    assert top_k - 1e-9 <= experts_met(8, top_k, tokens) <= experts_met(8, top_k, tokens + 1) <= 8


def test_experts_met_is_the_mean_of_random_choices() -> None:
    rng = random.Random(0)
    draws = [len({e for _ in range(4) for e in rng.sample(range(8), 2)}) for _ in range(4000)]
    assert sum(draws) / len(draws) == pytest.approx(experts_met(8, 2, 4), rel=0.02)
