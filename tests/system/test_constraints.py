"""Penalties, bad words, biases and min_tokens over gRPC, through the whole ensemble."""

from collections import Counter
from typing import Any

import pytest
from system_server import Server

STORY = "Once upon a time"
ASKED: dict[str, Any] = {
    "text_input": STORY,
    "max_tokens": 60,
    "return_output_ids": True,
    "return_num_output_tokens": True,
}


@pytest.fixture(params=[True, False], ids=["stream", "plain"])
def asked(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ASKED | {"stream": request.param}


def test_bad_words_are_not_written(server: Server, asked: dict[str, Any]) -> None:
    plain = server.ask(**asked).text
    common = [word for word, _ in Counter(word for word in plain.split() if word.isalpha()).most_common(3)]
    text = server.ask(**asked, bad_words=common).text
    assert len(text) > 20
    assert not set(common) & set(text.split())


def test_a_biased_token_is_forced_or_banned(server: Server, asked: dict[str, Any]) -> None:
    first = server.ask(**asked).values("output_ids")[0]
    forced = server.ask(**asked, logit_bias_ids=[first], logit_bias_values=[100.0])
    assert forced.values("output_ids") == [first] * 60
    banned = server.ask(**asked, logit_bias_ids=[first], logit_bias_values=[-100.0])
    assert first not in banned.values("output_ids")


def test_a_biased_word_is_forced(server: Server, asked: dict[str, Any]) -> None:
    answer = server.ask(**asked | {"max_tokens": 3}, embedding_bias_words=["river"], embedding_bias_weights=[100.0])
    assert answer.text == " river" * 3


def test_the_text_does_not_end_before_min_tokens(server: Server, asked: dict[str, Any]) -> None:
    """Token 2, the end, is made so likely that it comes as soon as it may."""
    bias: dict[str, Any] = {"logit_bias_ids": [2], "logit_bias_values": [100.0]}
    assert server.ask(**asked, **bias).text == ""
    answer = server.ask(**asked, **bias, min_tokens=7)
    assert sum(answer.values("num_output_tokens")) == 7
    assert answer.values("finish_reason") == [b"stop"]


def test_frequency_penalty_spreads_the_tokens(server: Server, asked: dict[str, Any]) -> None:
    ids = server.ask(**asked, ignore_eos=True).values("output_ids")
    spread = server.ask(**asked, ignore_eos=True, frequency_penalty=50.0).values("output_ids")
    assert len(set(spread)) == len(spread) > len(set(ids))
