"""Keys, bodies, ids, origins: what stands before the endpoints."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_thread import RunningGateway, running_gateway

from mixtral_gateway.api_keys import ApiKeyError, ApiKeys
from mixtral_gateway.settings import Settings

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
GOOD, OTHER = "correct-horse-battery", "staple-staple-staple"


@pytest.fixture
def guarded(settings: Settings) -> Iterator[RunningGateway]:
    keys = ApiKeys.parse([f"alice:{GOOD}", f"bob:{OTHER}"], "a test")
    with running_gateway(replace(settings, keys=keys, max_body_bytes=4096)) as running:
        yield running


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", f"Basic {GOOD}", f"Bearer {GOOD}x", f"Bearer {GOOD[:-1]}", GOOD]
)
def test_without_a_key_nothing_below_v1_answers(guarded: RunningGateway, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with httpx.Client(base_url=guarded.url, headers=headers) as http:
        for refusal in (http.get("/v1/models"), http.post("/v1/chat/completions", json=CHAT)):
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "invalid_api_key")
            assert refusal.headers["www-authenticate"] == "Bearer"
        assert http.get("/health").status_code == http.get("/").status_code == 200


def test_each_key_has_a_name_in_the_log_and_is_not_there_itself(guarded: RunningGateway) -> None:
    for key in (GOOD, OTHER):
        assert httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert [record["key"] for record in guarded.records()] == ["alice", "bob"]
    assert not any(key in guarded.log.getvalue() for key in (GOOD, OTHER))


@pytest.mark.parametrize("lines", [[], ["nocolon"], ["a:short"], ["a b:" + GOOD], [f"a:{GOOD}", f"a:{OTHER}"]])
def test_key_lists_that_are_refused_are_not_shown(lines: list[str]) -> None:
    with pytest.raises(ApiKeyError) as error:
        ApiKeys.parse(lines, "the file")
    assert GOOD not in str(error.value)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# mine\nalice:{GOOD}\n")
    path.chmod(0o644)
    with pytest.raises(ApiKeyError, match="chmod 600"):
        ApiKeys.from_file(path)
    path.chmod(0o600)
    assert ApiKeys.from_file(path).owner(f"Bearer {GOOD}") == "alice"
    assert GOOD not in repr(ApiKeys.from_file(path))


def test_bodies_are_limited(guarded: RunningGateway) -> None:
    headers = {"Authorization": f"Bearer {GOOD}"}
    long = CHAT | {"user": "x" * 5000}
    refusal = httpx.post(f"{guarded.url}/v1/chat/completions", json=long, headers=headers)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"model":"\\ud800"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
    ],
)
def test_bodies_that_are_no_json(http: httpx.Client, body: bytes, kind: str, status: int) -> None:
    refusal = http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind} if kind else {})
    assert refusal.status_code == status
    assert refusal.json()["error"]["type"] == "invalid_request_error"


def test_request_ids_come_back_when_they_are_harmless(http: httpx.Client, gateway: RunningGateway) -> None:
    given = http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-ID": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.json()["id"] == "chatcmpl-mine-1"
    made = http.get("/v1/models", headers={"X-Request-ID": 'a"b'})
    assert len(made.headers["x-request-id"]) == 32
    assert [record["request_id"] for record in gateway.records()] == ["mine-1", made.headers["x-request-id"]]


def test_web_pages_of_other_origins_are_kept_out_unless_named(settings: Settings, http: httpx.Client) -> None:
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in http.options("/v1/chat/completions", headers=ask).headers
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=ask).headers
    with running_gateway(replace(settings, cors_origins=("https://page.example",))) as named:
        allowed = httpx.options(f"{named.url}/v1/chat/completions", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_metrics_count_by_route_and_status(http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json=CHAT)
    http.get("/made-up")
    page = http.get("/metrics").text
    assert 'mixtral_gateway_requests_total{route="/v1/chat/completions",status="200"} 1.0' in page
    assert 'mixtral_gateway_requests_total{route="other",status="404"} 1.0' in page
    assert 'mixtral_gateway_tokens_total{direction="output"} 3.0' in page
    assert "mixtral_gateway_running 0.0" in page
