"""Requests that are refused: the status, and an error object that names the field."""

from typing import Any

import httpx
import openai
import pytest
from gateway_thread import RunningGateway, running_gateway
from scripted_server import ScriptedServer, answer, failure, hang, story

from mixtral_gateway.settings import Settings

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


@pytest.mark.parametrize(
    ("path", "change", "param", "code"),
    [
        ("chat/completions", {"tools": [{"type": "custom"}]}, "tools", "unsupported_parameter"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ("chat/completions", {"best_of": 2}, "best_of", "unknown_parameter"),
        ("chat/completions", {"min_length": 3}, "min_length", "unknown_parameter"),
        ("chat/completions", {"temperature": "hot"}, "temperature", "invalid_type"),
        ("chat/completions", {"max_tokens": True}, "max_tokens", "invalid_type"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens", None),
        ("chat/completions", {"max_completion_tokens": 5}, "max_tokens", None),
        ("chat/completions", {"messages": "hi"}, "messages", "invalid_type"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "1"}]}, "messages", None),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", None),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages", None),
        ("chat/completions", {"messages": None}, "messages", "missing_required_parameter"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs", None),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
        ("chat/completions", {"n": 0}, "n", None),
        ("chat/completions", {"n": 129}, "n", None),
        ("chat/completions", {"stream_options": {"include_usage": True}}, "stream_options", None),
        ("chat/completions", {"stream": True, "stream_options": {"more": True}}, "stream_options", "invalid_type"),
        ("chat/completions", {"presence_penalty": 2.001}, "presence_penalty", None),
        ("completions", {"frequency_penalty": -3}, "frequency_penalty", None),
        ("chat/completions", {"logit_bias": {"x": 1}}, "logit_bias", None),
        ("chat/completions", {"logit_bias": {"5": 1000}}, "logit_bias", None),
        ("chat/completions", {"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),  # this server lacks it
        ("completions", {"prompt": []}, "prompt", None),
        ("completions", {"prompt": [[1], "a"]}, "prompt", None),
        ("completions", {"suffix": "the end"}, "suffix", "unsupported_parameter"),
        ("completions", {"best_of": 3}, "best_of", "unsupported_parameter"),
        ("completions", {"logprobs": 99}, "logprobs", None),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http: httpx.Client, path: str, change: dict[str, Any], param: str, code: str) -> None:
    refusal = http.post(f"/v1/{path}", json=(CHAT if path.startswith("chat") else TEXT) | change)
    assert refusal.status_code == 400
    error = refusal.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert param in error["message"]


def test_a_refused_penalty_is_told_with_its_limits(http: httpx.Client) -> None:
    refusal = http.post("/v1/completions", json=TEXT | {"frequency_penalty": 2.5})
    assert refusal.json()["error"]["message"] == "frequency_penalty is 2.5, it must be from -2 to 2"


def test_fields_that_say_nothing_are_taken(http: httpx.Client) -> None:
    nothing = {"tools": [], "response_format": {"type": "text"}, "store": False, "temperature": None, "functions": None}
    assert http.post("/v1/chat/completions", json=CHAT | nothing).status_code == 200
    assert http.post("/v1/completions", json=TEXT | {"best_of": 1, "suffix": ""}).status_code == 200


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(**CHAT | {"model": "gpt"})
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("text", "status", "kind"),
    [
        ("INVALID_ARGUMENT: temperature is 900, the limit is 100", 400, "invalid_request_error"),
        ("UNAVAILABLE: the queue is full: 8 requests wait, the limit is 8", 429, "rate_limit_error"),
        ("UNAVAILABLE: the server is shutting down", 503, "server_error"),
        ("INTERNAL: the engine failed at this step", 500, "server_error"),
        ("Failed at /srv/models/postprocessing/model.py", 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_errors_become_statuses(
    http: httpx.Client, triton: ScriptedServer, text: str, status: int, kind: str, stream: bool
) -> None:
    triton.play(failure(f"in ensemble 'ensemble', {text}"))
    refusal = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert (refusal.status_code, refusal.json()["error"]["type"]) == (status, kind)
    assert ("retry-after" in refusal.headers) == (status in (429, 503))
    assert "/srv" not in refusal.text
    if status == 400:
        assert refusal.json()["error"]["param"] == "temperature"


def test_an_error_after_the_first_token_is_an_event(client: openai.OpenAI, triton: ScriptedServer) -> None:
    triton.play(answer("Once"), failure("in ensemble 'ensemble', INTERNAL: the engine failed"))
    events = iter(client.chat.completions.create(**CHAT, stream=True))
    assert [next(events).choices[0].delta.content for _ in range(2)] == ["", "Once"]
    with pytest.raises(openai.APIError, match="the engine failed"):
        next(events)


@pytest.mark.parametrize(("reason", "status"), [("timeout", 408), ("cancelled", 503), ("error", 500)])
def test_ends_that_openai_has_no_word_for(http: httpx.Client, triton: ScriptedServer, reason: str, status: int) -> None:
    triton.play(*story(finish=reason))
    assert http.post("/v1/chat/completions", json=CHAT).status_code == status


def test_a_silent_server_ends_in_an_error_event(settings: Settings, triton: ScriptedServer) -> None:
    triton.play(answer("Once"), hang())
    impatient = Settings(triton=settings.triton, models=("tiny",), idle_timeout_s=0.3)
    with running_gateway(impatient) as gateway:
        streamed = httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT | {"stream": True}, timeout=20)
        assert '"code":"upstream_timeout"' in streamed.text
        triton.play(hang())
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, timeout=20).status_code == 504


def test_without_a_server_everything_but_health_says_503(settings: Settings, triton: ScriptedServer) -> None:
    triton.stop()
    with running_gateway(settings) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as http:
        refusal = http.post("/v1/chat/completions", json=CHAT)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "service_unavailable")
        assert "retry-after" in refusal.headers
        assert settings.triton not in refusal.text
        assert http.get("/health").status_code == 503
        assert http.get("/live").status_code == 200


def test_health_tells_of_a_server_that_is_starting(http: httpx.Client, triton: ScriptedServer) -> None:
    triton.ready = False
    assert http.get("/health").json() == {"status": "unavailable", "reason": "it is starting"}
    refusal = http.post("/v1/completions", json=TEXT)
    assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "1")


def test_unknown_addresses_and_methods(http: httpx.Client) -> None:
    for method in ("GET", "POST"):
        missing = http.request(method, "/v1/embeddings")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert http.get("/v1/chat/completions").status_code == 405


def test_the_log_has_no_text(http: httpx.Client, gateway: RunningGateway) -> None:
    http.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": "my-secret"}]})
    http.post("/v1/chat/completions?my-secret", json=CHAT | {"my-secret": 1}, headers={"User-Agent": "my-secret"})
    assert [record["status"] for record in gateway.records()] == [200, 400]
    assert "my-secret" not in gateway.log.getvalue()
    assert "Once" not in gateway.log.getvalue()
