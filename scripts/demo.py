"""The whole way once: quantise the demo model to int8, build an engine, serve it, stream a story and a chat answer.

Where Triton cannot run (macOS, Windows, Arm, an old glibc) it says so and runs the engine without the server.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from mixtral_runtime.engine import Request
from mixtral_runtime.errors import MixtralError
from mixtral_runtime.open_engine import open_engine
from mixtral_serving.prompt import Prompt, PromptBuilder
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.installation import unsupported_platform
from mixtral_serving.server.preflight import check_all
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test
from mixtral_serving.text_stream import TextStream

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path("models") / "tiny-mixtral"  # the commands run in ROOT
BIN = Path(sys.executable).parent
STORY = "Once upon a time"
QUESTION = "My name is Zorin and my kite is red. What is my name, and what color is my kite?"
STORY_TOKENS = 240


def run(*command: str | Path) -> None:
    """Runs a command of this project as a user would, and ends with its exit code when it fails."""
    words = [str(word) for word in command]
    click.secho(f"$ {shlex.join(words)}", fg="cyan", err=True)
    code = subprocess.run([str(BIN / words[0]), *words[1:]], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def build(folder: Path) -> Path:
    """An int8 checkpoint and its engine."""
    run("mixtral-build", "quantize", MODEL, folder / "int8", "--precision", "int8")
    run("mixtral-build", "engine", folder / "int8", folder / "engine", "--runtime", "pytorch")
    return folder / "engine"


def with_server(engine: Path) -> None:
    address = free_address()
    check_all(engine, None, address)
    click.secho(f"starting Triton on port {address.grpc_port}", fg="cyan", err=True)
    begun = time.monotonic()
    with ServerProcess(ROOT / "model_repository", engine, address) as server:
        server.wait_until_ready(120)
        self_test(address)
        click.secho(f"ready after {time.monotonic() - begun:.1f} s", fg="cyan", err=True)
        url = ["--url", f"127.0.0.1:{address.grpc_port}"]
        run("mixtral", "stream", STORY, "--max-tokens", str(STORY_TOKENS), *url)
        run("mixtral", "chat", QUESTION, "--max-tokens", "60", *url)
    click.secho("server stopped", fg="cyan", err=True)


def without_server(engine_dir: Path, reason: str) -> None:
    click.secho(f"{reason}\nso here is the engine without the server:", fg="yellow", err=True)
    engine = open_engine(engine_dir)
    builder = PromptBuilder.load(engine_dir / "tokenizer")
    messages = json.dumps([{"role": "user", "content": QUESTION}])
    prompts: list[tuple[Prompt, int]] = [
        (builder.from_text(STORY), STORY_TOKENS),
        (builder.from_messages(messages), 60),
    ]
    for prompt, max_tokens in prompts:
        engine.submit(Request(prompt.ids, max_tokens, end_id=builder.end_id))
        stream = TextStream(builder.vocabulary, prompt.ids, strip_space=prompt.strip_space)
        final = False
        while not final:
            for output in engine.poll(1.0):
                final = output.final
                click.echo(stream.push(output.token_ids, final).text, nl=final)
    engine.close()


@click.command(help=__doc__)
def main() -> None:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mixtral-demo-") as folder:
        try:
            engine = build(Path(folder))
            if reason := unsupported_platform():
                without_server(engine, reason)
            else:
                with_server(engine)
            run("mixtral-build", "compare", MODEL, engine, "--text", MODEL / "heldout.jsonl")
        except MixtralError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
    click.secho(f"done in {time.monotonic() - begun:.0f} s", fg="cyan", err=True)


if __name__ == "__main__":
    main()
