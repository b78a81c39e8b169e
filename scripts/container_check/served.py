"""The engine behind Triton: a streamed request through our client, a cancelled one, and a stop."""

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from container_check.check import Failed, NotAvailable, Outcome
from container_check.engines import PROMPTS, TOKENS, engine_folder, tokens_file
from container_check.workplace import LAST_LINES, ROOT, Workplace, kill_group
from mixtral_client import Client, GenerationOptions, MixtralClientError
from mixtral_serving.server.free_address import free_address

READY_TIMEOUT_S, STOP_TIMEOUT_S, CANCEL_TIMEOUT_S = 300.0, 60.0, 30.0
ADVICE = "look at serve.log in the folder of --keep; `make serve SERVE_FLAGS=--verbose` shows all of Triton's log"


def check(workplace: Workplace) -> Outcome:
    if workplace.gpu is None:
        raise NotAvailable("a TensorRT-LLM engine is served on a GPU only, and there is none")
    expected = json.loads(tokens_file(workplace, "int8").read_text(encoding="utf-8"))
    return serve_and_ask(workplace, engine_folder(workplace, "int8"), [answer["text"] for answer in expected])


def serve_and_ask(workplace: Workplace, engine_dir: Path, texts: list[str]) -> Outcome:
    """texts: what the engine itself said to each of PROMPTS, without a server."""
    begun = time.monotonic()
    try:
        with _server(workplace, engine_dir) as (process, url), Client(url) as client:
            details = [f"ready after {time.monotonic() - begun:.1f} s"]
            for prompt, text in zip(PROMPTS, texts, strict=True):
                answer = client.generate(prompt, options=GenerationOptions(max_tokens=TOKENS))
                if answer.text != text:
                    raise Failed(f"{prompt!r}: the server said {answer.text!r}, the engine {text!r}", advice=ADVICE)
            details.append(f"{len(texts)} streamed answers are the engine's own text")
            details.append(f"a cancelled request ended after {_cancel(client):.1f} s")
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOP_TIMEOUT_S)
            if status != 0:
                raise Failed(f"the server was stopped and ended with status {status}", advice=ADVICE)
            return Outcome.passed(*details, "stopped in order")
    except MixtralClientError as error:
        raise Failed(f"the client reports: {error}", advice=ADVICE) from error


@contextlib.contextmanager
def _server(workplace: Workplace, engine_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running `scripts/serve.py` and the URL of its gRPC port; killed on the way out if it still runs."""
    address = free_address()
    log = workplace.folder / "serve.log"
    command = [sys.executable, ROOT / "scripts" / "serve.py", "--engine", engine_dir, "--http-port", address.http_port]
    command += ["--grpc-port", address.grpc_port, "--metrics-port", address.metrics_port]
    command += ["--health-port", address.health_port]
    command += ["--ready-timeout", READY_TIMEOUT_S]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=workplace.variables(),
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        readable, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S + STOP_TIMEOUT_S)
        line = process.stdout.readline().decode(errors="replace") if readable else ""
        if not line.startswith("ready:"):
            lines = [text for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
            raise Failed("the server did not become ready, the last lines of its log:", *lines[-LAST_LINES:])
        yield process, f"{address.local_host}:{address.grpc_port}"
    finally:
        if process.poll() is None:  # Triton leads a group of its own, which serve.py ends when it is asked to stop
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        kill_group(process)
        process.stdout.close()


def _cancel(client: Client) -> float:
    """Leaves a stream after its first piece, and returns the seconds until the engine has nothing to do."""
    options = GenerationOptions(max_tokens=400, ignore_eos=True)
    with contextlib.closing(client.stream(PROMPTS[0], options=options)) as chunks:
        next(chunks)
    begun = time.monotonic()
    while time.monotonic() - begun < CANCEL_TIMEOUT_S:
        stats = client.status().stats
        if stats["active"] == stats["queued"] == 0:
            if stats["finished"].get("cancelled", 0) == 0:
                raise Failed("the request was cancelled by the client and ran to its end all the same", advice=ADVICE)
            return time.monotonic() - begun
        time.sleep(0.05)
    raise Failed(f"the engine still works {CANCEL_TIMEOUT_S:g} s after a cancel", advice=ADVICE)
