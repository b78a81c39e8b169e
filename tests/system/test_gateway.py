"""The gateway's command before the real Triton, used by the real openai client."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from system_server import Server, free_address, idle

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = Path(sys.executable).parent / "mixtral-gateway"
KEY = "a-key-of-these-tests"
STORY = "Once upon a time"
CHAT: list[Any] = [{"role": "user", "content": "My name is Zorin. What is my name?"}]
LONG: dict[str, Any] = {"model": "mixtral", "prompt": STORY, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}


class Process:
    """A running `mixtral-gateway`."""

    def __init__(self, server: Server, log: Path, *options: str) -> None:
        self.log = log
        self._file = log.open("w")
        self.child = subprocess.Popen(
            [GATEWAY, "--triton", server.grpc_url, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._file,
            text=True,
            env=os.environ | {"MIXTRAL_GATEWAY_API_KEYS": f"tester:{KEY}"},
        )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("listening: "), log.read_text()
        self.url = line.split()[1]

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self) -> int:
        self.child.terminate()
        code = self.child.wait(60)
        self._file.close()
        return code


@pytest.fixture(scope="module")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(server, tmp_path_factory.mktemp("gateway") / "log")
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
def client(gateway: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=60) as opened:
        yield opened


def test_models_and_health(gateway: Process, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mixtral"]
    assert httpx.get(f"{gateway.url}/health").json() == {"status": "ok"}


def test_chat_streamed_and_whole_are_the_servers_own_answer(server: Server, client: openai.OpenAI) -> None:
    direct = server.ask(messages=json.dumps(CHAT), max_tokens=30).text
    whole = client.chat.completions.create(model="mixtral", messages=CHAT, max_tokens=30, temperature=0)
    streamed = client.chat.completions.create(model="mixtral", messages=CHAT, max_tokens=30, temperature=0, stream=True)
    pieces = [choice.delta.content or "" for event in streamed for choice in event.choices]
    assert whole.choices[0].message.content == "".join(pieces) == direct
    assert whole.choices[0].finish_reason == "stop"


def test_completions_with_usage_and_both_finish_reasons(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "mixtral", "prompt": STORY, "temperature": 0, "max_tokens": 12}
    cut = client.completions.create(**ask)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 12
    stop = cut.choices[0].text[-5:]
    events = list(client.completions.create(**ask, stop=stop, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for event in events for choice in event.choices) == cut.choices[0].text[:-5]
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage is not None
    assert events[-1].usage.prompt_tokens == cut.usage.prompt_tokens


def test_a_chat_without_a_limit_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mixtral", messages=CHAT, temperature=0)
    assert answer.choices[0].finish_reason == "stop"


def test_n_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        ask = {"model": "mixtral", "prompt": STORY, "max_tokens": 20, "temperature": 1.5, "seed": 3, "n": 3}
        return [choice.text for choice in client.completions.create(**ask).choices]  # type: ignore[call-overload]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_echo_with_log_probabilities_agrees_with_the_server(server: Server, client: openai.OpenAI) -> None:
    direct = server.ask(text_input=STORY, max_tokens=1, return_prompt_log_probs=True).values("prompt_log_probs")
    for max_tokens in (0, 4):
        (choice,) = client.completions.create(
            model="mixtral", prompt=STORY, max_tokens=max_tokens, temperature=0, echo=True, logprobs=2
        ).choices
        assert choice.text.startswith(STORY)
        log_probs = choice.logprobs
        assert log_probs is not None
        assert log_probs.tokens is not None
        assert log_probs.token_logprobs is not None
        assert log_probs.token_logprobs[1 : len(direct) + 1] == pytest.approx(direct)
        assert len(log_probs.tokens) == len(direct) + 1 + max_tokens
        assert "".join(log_probs.tokens[1:]) == f" {choice.text}"
        assert log_probs.text_offset is not None
        for token, offset in zip(log_probs.tokens[2:], log_probs.text_offset[2:], strict=True):
            assert choice.text[offset:].startswith(token)


def test_chat_log_probabilities_join_to_the_text(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model="mixtral", messages=CHAT, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    ).choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    text = b"".join(bytes(token.bytes or []) for token in tokens if token.token != "</s>").decode()
    assert text.removeprefix(" ") == choice.message.content
    assert all(token.top_logprobs[0].logprob == token.logprob and len(token.top_logprobs) == 3 for token in tokens)


def test_the_servers_refusal_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="mixtral", prompt=STORY, temperature=900)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.completions.create(model="mixtral", prompt=STORY, max_tokens=10**6)


def test_leaving_stops_the_engine(server: Server, client: openai.OpenAI) -> None:
    streamed = client.completions.create(**LONG, stream=True)
    next(iter(streamed))
    before = server.info()["stats"]["output_tokens"]
    streamed.close()
    assert server.wait_for_stats(idle)["output_tokens"] - before < 500
    before = server.info()["stats"]["output_tokens"]
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).completions.create(**LONG)
    assert server.wait_for_stats(idle)["output_tokens"] - before < 1500


def test_64_at_once(server: Server, gateway: Process) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, timeout=120) as client:

            async def one(index: int) -> str:
                text, ask = (
                    "",
                    {"model": "mixtral", "prompt": f"{STORY} {index % 8}", "max_tokens": 8, "temperature": 0},
                )
                async for event in await client.completions.create(**ask, stream=True):  # type: ignore[call-overload]
                    text += event.choices[0].text
                return text

            return list(await asyncio.gather(*(one(index) for index in range(64))))

    texts = asyncio.run(run())
    assert all(texts)
    assert texts == texts[:8] * 8
    server.wait_for_stats(idle)


def test_a_full_queue_is_429_and_when_to_come_again(server: Server, gateway: Process) -> None:
    """Of 128 choices each; the engine runs 16 at a time and lets 256 wait."""
    body = {"model": "mixtral", "prompt": STORY, "max_tokens": 1500, "ignore_eos": True, "stream": True, "n": 128}
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        content, address = json.dumps(body).encode(), http.base_url
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        with contextlib.ExitStack() as waiting:
            for _ in range(2):  # sent and not read: the second one's answer begins late
                opened = socket.create_connection((address.host, address.port or 0), timeout=60)
                waiting.enter_context(opened).sendall(head.encode() + content)
            server.wait_for_stats(lambda stats: stats["active"] + stats["queued"] == 256)
            refused = http.post("/v1/completions", json=body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert "256" in error["message"]  # the limit
        server.wait_for_stats(idle)
        assert http.post("/v1/completions", json=body | {"n": 1, "max_tokens": 1, "stream": False}).status_code == 200


def test_a_generation_that_takes_too_long_is_408_or_ends_its_stream(server: Server, tmp_path: Path) -> None:
    process = Process(server, tmp_path / "log", "--request-timeout", "0.3")
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as late:
            client.completions.create(**LONG)
        assert (late.value.status_code, late.value.code) == (408, "timeout")
        with pytest.raises(openai.APIError, match="deadline"):
            list(client.completions.create(**LONG, stream=True))
    server.wait_for_stats(idle)
    assert process.stop() == 0
    assert [record["error"] for record in process.records()] == ["timeout", "timeout"]


def test_a_stop_signal_lets_the_running_request_end(server: Server, tmp_path: Path) -> None:
    process = Process(server, tmp_path / "log")
    with (
        openai.OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client,
        httpx.Client(base_url=process.url, timeout=60) as health,
    ):
        running = iter(client.completions.create(**LONG | {"max_tokens": 1000}, stream=True))
        next(running)
        process.child.terminate()
        while health.get("/health").status_code == 200:  # until the signal is seen
            time.sleep(0.02)
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client.completions.create(model="mixtral", prompt=STORY, max_tokens=1)
        assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "1")
        assert [event.choices[0].finish_reason for event in running][-1] == "length"
    assert process.child.wait(20) == 0


def test_wrong_use_of_the_command(tmp_path: Path) -> None:
    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run([GATEWAY, *options], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert run("--port", "seventy")[0] == 2
    code, text = run("--api-keys", str(tmp_path / "none"))
    assert (code, text) == (1, f"error: {tmp_path / 'none'} cannot be read: No such file or directory\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = run("--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "Address already in use" in text


def test_beside_the_server_it_is_started_again_and_stopped_with_it(engine_dir: Path, tmp_path: Path) -> None:
    address, log = free_address(), tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ports = {"http": address.http_port, "grpc": address.grpc_port, "metrics": address.metrics_port}
    ports |= {"health": address.health_port, "gateway": port}
    options = [part for name, value in ports.items() for part in (f"--{name}-port", str(value))]

    def wait_for_health() -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200:
                    return
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)

    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--engine", str(engine_dir), *options]
    with log.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as launcher:
        assert launcher.stdout is not None
        try:
            assert launcher.stdout.readline().startswith("ready: ")
            wait_for_health()
            (child,) = [c for c in psutil.Process(launcher.pid).children() if "mixtral_gateway" in c.cmdline()]
            child.kill()
            psutil.wait_procs([child], 10)
            wait_for_health()
        finally:
            launcher.terminate()
        assert launcher.wait(60) == 0
    assert f"the gateway on port {port} ended with code -9" in log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/live")
