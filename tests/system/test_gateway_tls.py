"""The gateway before a Triton that asks for mutual TLS: with a known certificate it serves as ever, without one it says
that it cannot, and to nobody why."""

import shlex
import time
from pathlib import Path

import httpx
import openai
import pytest
from certificates import Authority
from gateway_process import gateway_process
from guarded_server import GuardedServer, blocks
from system_server import Server

STORY = "Once upon a time"
ASK = {"model": "mixtral", "prompt": STORY, "max_tokens": 30, "temperature": 0}


def test_the_pages_command_serves_streams_and_cancels(guarded: GuardedServer, server: Server) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("mixtral-gateway"))
    _, *options = shlex.split(command)
    files = {name: str(guarded.folder / name) for name in ("ca.pem", "alice.pem", "alice.key")}
    options = [files.get(option, option) for option in options if option not in ("--triton", "gpu-host:8001")]
    with (
        gateway_process(guarded.server.grpc_url, *options) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        assert httpx.get(f"{gateway.url}/health", timeout=30).json() == {"status": "ok"}
        text = "".join(event.choices[0].text for event in client.completions.create(**ASK, stream=True))  # type: ignore[call-overload]
        assert text == server.ask(text_input=STORY, max_tokens=30).text
        long = ASK | {"max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
        with client.completions.create(**long) as left:  # type: ignore[call-overload]
            next(iter(left))
    with guarded.client() as direct:
        for _ in range(400):  # 20 seconds; a few steps are enough
            stats = direct.status().stats
            if stats["active"] == 0:
                break
            time.sleep(0.05)
        assert stats["active"] == 0
        assert stats["kv_blocks_free"] == stats["kv_blocks_total"]
        assert stats["finished"]["cancelled"] >= 1


@pytest.mark.parametrize("known", ["nothing", "the authority", "another authority's certificate"])
def test_without_a_known_certificate_it_is_unavailable(guarded: GuardedServer, known: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "strangers").issue("client")
    options = {
        "nothing": [],
        "the authority": ["--ca", guarded.tls.ca],
        "another authority's certificate": [
            "--ca",
            guarded.tls.ca,
            "--cert",
            stranger.certificate,
            "--key",
            stranger.key,
        ],
    }[known]
    with gateway_process(guarded.server.grpc_url, *map(str, options)) as gateway:
        assert httpx.get(f"{gateway.url}/health", timeout=30).status_code == 503
        refused = httpx.post(f"{gateway.url}/v1/completions", json=ASK, timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
    assert str(guarded.server.address.grpc_port) not in refused.text
