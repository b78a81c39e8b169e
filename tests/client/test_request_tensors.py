"""What a caller asks for arrives as the tensors of the server's contract."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import inputs_of

from mixtral_client import GenerationOptions, InvalidArgument, Message
from mixtral_client.tensors import generation_request


def request(options: GenerationOptions | None = None, **prompt: Any) -> Any:
    prompt = prompt or {"prompt": "Hi"}
    parts = {"prompt": None, "messages": None, "input_ids": None} | prompt
    return generation_request(**parts, options=options or GenerationOptions(), request_id="id")


def test_a_plain_request_sends_little() -> None:
    assert inputs_of(request()) == {
        "text_input": [[b"Hi"]],
        "max_tokens": [[256]],
        "stream": [[True]],
        "return_num_input_tokens": [[True]],
        "return_num_output_tokens": [[True]],
    }


def test_every_option_arrives_with_its_type_and_a_batch_dimension() -> None:
    options = GenerationOptions(
        max_tokens=7,
        stop_words=("\n\n", "конец"),
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.75,
        frequency_penalty=-0.5,
        logit_bias=((5, -100.0), (7, 1.5)),
        min_tokens=3,
        bad_words=("owl",),
        seed=2**64 - 1,
        exclude_input_in_output=False,
        ignore_eos=True,
        timeout_ms=1500,
        stream_interval=4,
        return_output_ids=True,
        return_log_probs=True,
        return_prompt_log_probs=True,
        top_log_probs=2,
        stream=False,
    )
    sent = request(options)
    assert {tensor.name: tensor.datatype for tensor in sent.inputs} == {
        "text_input": "BYTES",
        "max_tokens": "INT32",
        "stop_words": "BYTES",
        "temperature": "FP32",
        "top_k": "INT32",
        "top_p": "FP32",
        "min_p": "FP32",
        "repetition_penalty": "FP32",
        "presence_penalty": "FP32",
        "frequency_penalty": "FP32",
        "logit_bias_ids": "INT32",
        "logit_bias_values": "FP32",
        "min_tokens": "INT32",
        "bad_words": "BYTES",
        "seed": "UINT64",
        "exclude_input_in_output": "BOOL",
        "ignore_eos": "BOOL",
        "timeout_ms": "INT32",
        "stream_interval": "INT32",
        "return_output_ids": "BOOL",
        "return_log_probs": "BOOL",
        "return_prompt_log_probs": "BOOL",
        "top_log_probs": "INT32",
        "stream": "BOOL",
        "return_num_input_tokens": "BOOL",
        "return_num_output_tokens": "BOOL",
    }
    values = inputs_of(sent)
    assert values["stop_words"] == [[b"\n\n", "конец".encode()]]
    assert values["seed"] == [[2**64 - 1]]
    assert values["stream"] == [[False]]
    assert values["exclude_input_in_output"] == [[False]]
    assert values["bad_words"] == [[b"owl"]]
    assert (values["logit_bias_ids"], values["logit_bias_values"]) == ([[5, 7]], [[-100.0, 1.5]])
    assert {field.name for field in fields(GenerationOptions)} - {"logit_bias"} <= set(values)


def test_outputs_are_requested_only_when_asked_for() -> None:
    plain = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"]
    assert [output.name for output in request().outputs] == plain
    options = GenerationOptions(
        return_output_ids=True, return_log_probs=True, return_prompt_log_probs=True, top_log_probs=5
    )
    assert [output.name for output in request(options).outputs] == [
        *plain,
        "output_ids",
        "output_log_probs",
        "cum_log_probs",
        "prompt_log_probs",
        "top_token_ids",
        "top_token_log_probs",
    ]


def test_the_request_asks_for_an_empty_final_response_and_bears_its_id() -> None:
    sent = request()
    assert sent.id == "id"
    assert sent.parameters["triton_enable_empty_final_response"].bool_param


def test_messages_are_sent_as_json() -> None:
    sent = request(messages=[Message(role="user", content='Wie heißt "π"?')])
    assert inputs_of(sent)["messages"] == [['[{"role": "user", "content": "Wie heißt \\"π\\"?"}]'.encode()]]
    assert "text_input" not in inputs_of(sent)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50))
def test_token_ids_are_sent_as_they_are(ids: list[int]) -> None:
    assert inputs_of(request(input_ids=ids))["input_ids"] == [ids]


@given(st.text())
def test_any_text_is_sent_as_utf8(text: str) -> None:
    assert inputs_of(request(prompt=text))["text_input"] == [[text.encode()]]


@pytest.mark.parametrize(
    "prompt", [{"prompt": None}, {"prompt": "a", "input_ids": [1]}, {"prompt": "", "messages": []}]
)
def test_anything_but_one_prompt_is_refused(prompt: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="exactly one"):
        request(**prompt)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (GenerationOptions(seed=-1), f"seed is -1, it must be from 0 to {2**64 - 1}"),
        (GenerationOptions(seed=2**64), f"seed is {2**64}, it must be from 0 to {2**64 - 1}"),
        (GenerationOptions(max_tokens=2**31), f"max_tokens is {2**31}, it must be from {-(2**31)} to {2**31 - 1}"),
    ],
)
def test_a_value_too_large_for_its_tensor_is_refused_with_the_range(options: GenerationOptions, sentence: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        request(options)
    assert str(raised.value) == sentence


@given(st.floats(width=32, min_value=0, max_value=100))
def test_the_temperature_is_sent_exactly(temperature: float) -> None:
    assert inputs_of(request(GenerationOptions(temperature=temperature)))["temperature"] == [[np.float32(temperature)]]
