"""`mixtral` against the real server: text on stdout, everything else on stderr, Ctrl-C ends the work."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from system_server import Server, idle

MIXTRAL = Path(sys.executable).parent / "mixtral"
STORY = "Once upon a time"


def mixtral(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(MIXTRAL), *arguments, "--url", server.grpc_url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_stream_prints_the_text_alone_on_stdout(server: Server) -> None:
    done = mixtral(server, "stream", STORY, "--max-tokens", "20")
    assert done.returncode == 0
    assert done.stdout.rstrip("\n") == server.ask(text_input=STORY, max_tokens=20).text
    assert "20 out" in done.stderr
    assert "length" in done.stderr


def test_chat_applies_the_template(server: Server) -> None:
    messages = json.dumps([{"role": "user", "content": "What is two plus three?"}])
    done = mixtral(server, "chat", "What is two plus three?", "--max-tokens", "20")
    assert (done.returncode, done.stdout.strip()) == (0, server.ask(messages=messages, max_tokens=20).text.strip())


def test_json_holds_everything(server: Server) -> None:
    done = mixtral(server, "stream", STORY, "--max-tokens", "8", "--json")
    result = json.loads(done.stdout)
    assert result["text"] == server.ask(text_input=STORY, max_tokens=8).text
    assert result["finish_reason"] == "length"


def test_status_tells_what_is_served(server: Server) -> None:
    status = json.loads(mixtral(server, "status", "--json").stdout)
    assert status["manifest"]["precision"] == "int8"
    assert mixtral(server, "status").returncode == 0


def test_errors_are_one_line_and_exit_code_1(server: Server) -> None:
    done = mixtral(server, "stream", STORY, "--max-tokens", "100000")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "max_tokens is 100000, the limit" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_interrupt_cancels_on_the_server_and_exits_130(server: Server) -> None:
    command = [str(MIXTRAL), "stream", STORY, "--max-tokens", "1500", "--ignore-eos", "--url", server.grpc_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    server.wait_for_stats(idle)
