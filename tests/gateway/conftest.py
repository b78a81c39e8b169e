"""The gateway before a scripted server: no model, every answer known."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from gateway_thread import RunningGateway, running_gateway
from scripted_server import ScriptedServer, story

from mixtral_gateway.settings import Settings


@pytest.fixture
def triton() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.info = {"manifest": {}, "limits": {"max_seq_len": 64}, "stats": {}}
    scripted.play(*story())
    yield scripted
    scripted.stop()


@pytest.fixture
def settings(triton: ScriptedServer) -> Settings:
    return Settings(triton=triton.url, models=("tiny", "other"), idle_timeout_s=5.0)


@pytest.fixture
def gateway(settings: Settings) -> Iterator[RunningGateway]:
    with running_gateway(settings) as running:
        yield running


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened
