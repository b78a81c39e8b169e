"""Bad input over gRPC: one clear error each, the server unharmed, no stream hanging."""

import json
import re
from typing import Any

import pytest
from system_server import Server, idle

STORY = "Once upon a time"
NAN = float("nan")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ({"text_input": ""}, "INVALID_ARGUMENT: the prompt is empty"),
        ({"text_input": "word " * 5000}, r"INVALID_ARGUMENT: the prompt has \d+ tokens, the limit is \d+"),
        ({"text_input": STORY, "max_tokens": 0}, "INVALID_ARGUMENT: max_tokens is 0, it must be at least 1"),
        ({"text_input": STORY, "max_tokens": -3}, "INVALID_ARGUMENT: max_tokens is -3"),
        ({"text_input": STORY, "max_tokens": 10**6}, r"INVALID_ARGUMENT: max_tokens is 1000000, the limit .* is \d+"),
        ({"text_input": STORY, "temperature": -1.0}, "INVALID_ARGUMENT: temperature is -1, it must be from 0"),
        ({"text_input": STORY, "temperature": NAN}, "INVALID_ARGUMENT: temperature is nan, it must be from 0"),
        ({"text_input": STORY, "top_p": 2.0}, "INVALID_ARGUMENT: top_p is 2, it must be from 0 to 1"),
        ({"text_input": STORY, "top_p": NAN}, "INVALID_ARGUMENT: top_p is nan"),
        ({"text_input": STORY, "top_k": 5000}, "INVALID_ARGUMENT: top_k is 5000, it must be from 0 to 1024"),
        ({"text_input": STORY, "min_p": 1.5}, "INVALID_ARGUMENT: min_p is 1.5"),
        ({"text_input": STORY, "repetition_penalty": 0.0}, "INVALID_ARGUMENT: repetition_penalty is 0"),
        (
            {"text_input": STORY, "presence_penalty": 101.0},
            "INVALID_ARGUMENT: presence_penalty is 101, it must be from",
        ),
        ({"text_input": STORY, "frequency_penalty": NAN}, "INVALID_ARGUMENT: frequency_penalty is nan"),
        ({"text_input": STORY, "min_tokens": 6}, "INVALID_ARGUMENT: min_tokens is 6, .* max_tokens, which is 5"),
        ({"text_input": STORY, "min_tokens": -1}, "INVALID_ARGUMENT: min_tokens is -1"),
        ({"text_input": STORY, "bad_words": [f"w{n}" for n in range(65)]}, "INVALID_ARGUMENT: there are 65 bad words"),
        ({"text_input": STORY, "bad_words": [b"\xff"]}, "INVALID_ARGUMENT: bad_words is not valid UTF-8"),
        (
            {"text_input": STORY, "logit_bias_ids": [10**6], "logit_bias_values": [1.0]},
            "INVALID_ARGUMENT: logit_bias_ids has token id 1000000",
        ),
        (
            {"text_input": STORY, "logit_bias_ids": [5], "logit_bias_values": [NAN]},
            "INVALID_ARGUMENT: logit_bias of token 5 is nan, it must be from -10000 to 10000",
        ),
        ({"text_input": STORY, "logit_bias_ids": [5, 6]}, "INVALID_ARGUMENT: logit_bias_ids has 2 values and"),
        (
            {"text_input": STORY, "embedding_bias_words": ["a"]},
            "INVALID_ARGUMENT: embedding_bias_words has 1 values and embedding_bias_weights 0",
        ),
        ({"text_input": STORY, "timeout_ms": 0}, "INVALID_ARGUMENT: timeout_ms is 0"),
        ({"text_input": STORY, "stream_interval": 2000}, "INVALID_ARGUMENT: stream_interval is 2000, it must be from"),
        ({"text_input": STORY, "beam_width": 4}, "INVALID_ARGUMENT: beam_width is 4, this engine supports only 1"),
        ({"text_input": STORY, "top_log_probs": 99}, "INVALID_ARGUMENT: top_log_probs is 99"),
        ({"text_input": b"caf\xff"}, "INVALID_ARGUMENT: text_input is not valid UTF-8 at byte 3"),
        ({"text_input": STORY, "stop_words": [b"\xff"]}, "INVALID_ARGUMENT: stop_words is not valid UTF-8"),
        (
            {"text_input": STORY, "stop_words": [f"s{n}" for n in range(65)]},
            "INVALID_ARGUMENT: there are 65 stop words",
        ),
        ({"messages": "[{"}, "INVALID_ARGUMENT: messages is not JSON"),
        (
            {"messages": json.dumps([{"role": "robot", "content": "a"}])},
            r"INVALID_ARGUMENT: messages\[0\] has role 'robot'",
        ),
        (
            {"messages": json.dumps([{"role": "assistant", "content": "a"}])},
            "INVALID_ARGUMENT: the last message has role",
        ),
        ({"input_ids": [1, 10**6]}, "INVALID_ARGUMENT: input_ids has token id 1000000"),
        ({"input_ids": [-5]}, "INVALID_ARGUMENT: input_ids has token id -5"),
        ({"text_input": STORY, "max_tokens": None}, "INVALID_ARGUMENT: max_tokens is missing"),
        ({}, "INVALID_ARGUMENT: one of text_input, messages, input_ids must be given, none was"),
        ({"text_input": STORY, "input_ids": [1]}, "INVALID_ARGUMENT: .* text_input and input_ids was"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_one_clear_error_and_nothing_else(server: Server, inputs: dict[str, Any], error: str, stream: bool) -> None:
    tensors = {name: value for name, value in ({"max_tokens": 5} | inputs).items() if value is not None}
    answer = server.ask(**tensors, stream=stream)
    assert answer.error is not None
    assert answer.texts == []
    message = answer.error.removeprefix("in ensemble 'ensemble', ")
    assert re.match(error, message), message
    assert "Traceback" not in message
    assert ".py" not in message


def test_other_requests_do_not_notice(server: Server) -> None:
    undisturbed = server.ask(text_input=STORY, max_tokens=60, ignore_eos=True).text
    stream = server.open(text_input=STORY, max_tokens=60, ignore_eos=True, stream=True)
    for _ in range(10):
        assert server.ask(text_input=STORY, max_tokens=0).error
    assert stream.finish().text == undisturbed


def test_tensors_that_do_not_fit_are_refused_by_triton(server: Server) -> None:
    assert "unexpected inference input" in (server.ask(text_input=STORY, max_tokens=5, nope=1).error or "")
    assert server.ask(text_input=STORY, max_tokens=5).error is None
    server.wait_for_stats(idle)
