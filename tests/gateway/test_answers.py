"""What the endpoints answer, read by the real openai client and compared with its own types."""

from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted_server import ScriptedServer, answer, inputs_of, story

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me a story."}]}
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "Once"}


def sent(triton: ScriptedServer) -> dict[str, Any]:
    """The inputs of the last generation."""
    return inputs_of([request for request in triton.requests if request.model_name == "ensemble"][-1])


def test_models(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["tiny", "other"]
    assert client.models.retrieve("other") == models[1]
    assert models[1].model_dump()["max_model_len"] == 64
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


def test_a_chat_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, max_tokens=9)
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Once upon a time")
    assert choice.finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (5, 3, 8)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_streamed_chat_answer(client: openai.OpenAI, triton: ScriptedServer, reason: str) -> None:
    triton.play(*story(finish=reason))
    events = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert events[0].choices[0].delta.role == "assistant"
    pieces = [event.choices[0].delta.content for event in events[1:4]]
    assert pieces == ["Once", " upon", " a time"]
    assert [event.choices[0].finish_reason for event in events[:5]] == [None] * 4 + [reason]
    assert events[5].choices == []
    assert events[5].usage is not None
    assert events[5].usage.total_tokens == 8
    assert len({event.id for event in events}) == 1


def test_streamed_events_are_of_openais_form(http: httpx.Client) -> None:
    body = http.post("/v1/chat/completions", json=ASK | {"stream": True}).text
    events = body.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        ChatCompletionChunk.model_validate_json(event.removeprefix("data: "), strict=True)
    whole = http.post("/v1/chat/completions", json=ASK)
    ChatCompletion.model_validate_json(whole.content, strict=True)
    whole = http.post("/v1/completions", json=PROMPT)
    Completion.model_validate_json(whole.content, strict=True)


def test_streamed_completions_of_several_prompts(client: openai.OpenAI) -> None:
    events: Any = client.completions.create(model="tiny", prompt=["Once", "Twice"], n=2, stream=True)
    texts, reasons = [""] * 4, [""] * 4
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == ["Once upon a time"] * 4
    assert reasons == ["stop"] * 4


def test_a_prompt_answered_twice_counts_once(client: openai.OpenAI) -> None:
    usage = client.completions.create(model="tiny", prompt=["Once", "Twice"], n=2).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 12)


def test_every_parameter_reaches_the_server(client: openai.OpenAI, triton: ScriptedServer) -> None:
    extra = {"top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5, "ignore_eos": True}
    client.completions.create(
        **PROMPT, max_tokens=11, temperature=0.5, top_p=0.75, seed=-1, stop=["zz", "yy"], presence_penalty=2,
        frequency_penalty=-2, user="someone", extra_body=extra,
    )  # fmt: skip
    inputs = sent(triton)
    assert inputs["stop_words"] == [[b"zz", b"yy"]]
    values = {name: inputs[name][0][0] for name in ("max_tokens", "temperature", "top_p", "seed", *extra)}
    assert values == extra | {"max_tokens": 11, "temperature": 0.5, "top_p": 0.75, "seed": 2**64 - 1}
    assert (inputs["presence_penalty"], inputs["frequency_penalty"]) == ([[2]], [[-2]])


def test_defaults_are_openais(client: openai.OpenAI, triton: ScriptedServer) -> None:
    client.completions.create(**PROMPT)
    assert (sent(triton)["max_tokens"], sent(triton)["temperature"]) == ([[16]], [[1.0]])


def test_a_chat_may_fill_the_models_length(client: openai.OpenAI, triton: ScriptedServer) -> None:
    triton.tokenize = lambda text: [1] * 14
    client.chat.completions.create(**ASK)
    assert sent(triton)["max_tokens"] == [[64 - 14]]


def test_answers_to_one_prompt_have_seeds_of_their_own(client: openai.OpenAI, triton: ScriptedServer) -> None:
    client.completions.create(**PROMPT, n=3, seed=5)
    assert sorted(inputs_of(request)["seed"][0][0] for request in triton.requests[-3:]) == [5, 6, 7]


def test_token_ids_as_prompt(client: openai.OpenAI, triton: ScriptedServer) -> None:
    client.completions.create(model="tiny", prompt=[1, 2, 3])
    assert sent(triton)["input_ids"] == [[1, 2, 3]]


def test_content_in_parts_is_joined_and_developer_means_system(client: openai.OpenAI, triton: ScriptedServer) -> None:
    parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client.chat.completions.create(
        model="tiny", max_tokens=5,
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
    )  # fmt: skip
    assert sent(triton)["messages"] == [
        [b'[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "ab"}]']
    ]


def with_log_probs(triton: ScriptedServer) -> None:
    """Three tokens beside the special ones: a word and the halves of a character."""
    triton.vocabulary += [b" one", b"\xc3", b"\xa9"]
    triton.play(
        answer(" one", output_ids=[[[3]]], output_log_probs=[[[-0.5]]], top_token_ids=[[[3, 4]]],
               top_token_log_probs=[[[-0.5, -1.5]]], num_input_tokens=[[2]], num_output_tokens=[[1]],
               prompt_log_probs=[[-2.0]]),
        answer("é", "stop", final=True, output_ids=[[[4, 5]]], output_log_probs=[[[-1.0, -0.25]]],
               top_token_ids=[[[4, 3], [5, 3]]], top_token_log_probs=[[[-1.0, -3.0], [-0.25, -4.0]]],
               num_input_tokens=[[2]], num_output_tokens=[[2]]),
    )  # fmt: skip


def test_chat_log_probabilities(client: openai.OpenAI, triton: ScriptedServer) -> None:
    with_log_probs(triton)
    whole = client.chat.completions.create(**ASK, max_tokens=5, logprobs=True, top_logprobs=2)
    log_probs = whole.choices[0].logprobs
    assert log_probs is not None
    assert log_probs.content is not None
    assert [(token.token, token.bytes, token.logprob) for token in log_probs.content] == [
        (" one", list(b" one"), -0.5),
        ("�", [0xC3], -1.0),
        ("�", [0xA9], -0.25),
    ]
    assert [(top.token, top.logprob) for top in log_probs.content[0].top_logprobs] == [(" one", -0.5), ("�", -1.5)]
    streamed = client.chat.completions.create(**ASK, max_tokens=5, logprobs=True, top_logprobs=2, stream=True)
    pieces = [event.choices[0].logprobs for event in streamed]
    assert [token for piece in pieces if piece and piece.content for token in piece.content] == log_probs.content


def test_echo_with_the_prompts_log_probabilities(client: openai.OpenAI, triton: ScriptedServer) -> None:
    with_log_probs(triton)
    answered = client.completions.create(model="tiny", prompt=[1, 3], max_tokens=3, logprobs=1, echo=True)
    log_probs = answered.choices[0].logprobs
    assert log_probs is not None
    assert log_probs.tokens == ["<s>", " one", " one", "bytes:\\xc3", "bytes:\\xa9"]
    assert log_probs.token_logprobs == [None, -2.0, -0.5, -1.0, -0.25]
    assert log_probs.top_logprobs is not None
    assert log_probs.top_logprobs[:2] == [None, {" one": -2.0}]
    # The text is "one oneé": the prompt's first word lost its space, a special token has no length.
    assert log_probs.text_offset == [0, 0, 3, 7, 8]
    inputs = sent(triton)
    assert inputs["exclude_input_in_output"] == [[False]]
    assert inputs["return_prompt_log_probs"] == [[True]]


def test_no_token_at_all_but_the_prompts_log_probabilities(client: openai.OpenAI, triton: ScriptedServer) -> None:
    with_log_probs(triton)
    for prompt in ([1, 3], "one"):
        triton.tokenize = lambda text: [1, 3]
        answered = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, logprobs=1, echo=True)
        (choice,) = answered.choices
        assert (choice.text, choice.finish_reason) == ("one", "length")
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == [None, -2.0]
        assert answered.usage is not None
        assert answered.usage.completion_tokens == 0
