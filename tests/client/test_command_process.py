"""The `mixtral` command as a process: Ctrl-C, a closed pipe, and a conversation at a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, answer, failure, hang, inputs_of, pause

import mixtral_client

WAIT_S = 30.0  # for a busy machine; nothing here takes a second
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(mixtral_client.__file__).parents[1]), "TERM": "dumb"}


def start(
    server: ScriptedServer,
    *arguments: str,
    stdin: int | None = None,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mixtral_client", *arguments, "--url", server.url]
    return subprocess.Popen(command, env=ENVIRONMENT, stdin=stdin, stdout=stdout, stderr=stderr)


@pytest.mark.parametrize("mode", [[], ["--json"], ["--no-stream"]], ids=["text", "json", "no-stream"])
def test_ctrl_c_cancels_on_the_server_and_exits_130(server: ScriptedServer, mode: list[str]) -> None:
    server.play(answer("Once"), hang())
    process = start(server, "stream", "Hi", *mode)
    assert process.stdout is not None
    if mode:
        while not server.requests:
            time.sleep(0.01)
    else:
        assert os.read(process.stdout.fileno(), 4) == b"Once"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert stderr == b""
    assert server.cancelled.wait(WAIT_S)


def test_text_is_written_as_it_arrives(server: ScriptedServer) -> None:
    server.play(answer("Once"), hang())
    process = start(server, "stream", "Hi")
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"Once"  # into a pipe, while the generation goes on
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)


def test_a_closed_pipe_cancels_and_ends_quietly(server: ScriptedServer) -> None:
    server.play(*[answer("again and again "), pause(0.02)] * 500, hang())
    process = start(server, "stream", "Hi")
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 5)
    process.stdout.close()
    assert process.wait(timeout=WAIT_S) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
    assert server.cancelled.wait(WAIT_S)


class Terminal:
    """A conversation at a pseudo terminal."""

    def __init__(self, server: ScriptedServer) -> None:
        self._master, slave = pty.openpty()
        self.process = start(server, "chat", "--quiet", stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._unread = ""

    def expect(self, text: str) -> None:
        """Reads until the text appears."""
        while text not in self._unread:
            if not select.select([self._master], [], [], WAIT_S)[0]:
                pytest.fail(f"nothing came after {self._unread!r}, waiting for {text!r}")
            self._unread += os.read(self._master, 4096).decode()
        self._unread = self._unread.partition(text)[2]

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=WAIT_S)
        finally:
            self.process.kill()
            os.close(self._master)


def turns(server: ScriptedServer) -> list[list[tuple[str, str]]]:
    """The conversation as each request sent it."""
    sent = [json.loads(inputs_of(request)["messages"][0][0]) for request in server.requests]
    return [[(message["role"], message["content"]) for message in messages] for messages in sent]


def test_a_conversation_sends_all_turns_until_reset(server: ScriptedServer) -> None:
    server.play(answer("Because."), answer(finish="stop", final=True))
    terminal = Terminal(server)
    terminal.expect("> ")
    terminal.type("Why?\n")
    terminal.expect("> ")
    terminal.type("Really?\n")
    terminal.expect("> ")
    terminal.type("/reset\n")
    terminal.expect("> ")
    terminal.type("Who?\n")
    terminal.expect("Because.")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert turns(server) == [
        [("user", "Why?")],
        [("user", "Why?"), ("assistant", "Because."), ("user", "Really?")],
        [("user", "Who?")],
    ]


def test_a_refused_turn_is_dropped_and_the_conversation_goes_on(server: ScriptedServer) -> None:
    server.play(failure("in ensemble 'ensemble', INVALID_ARGUMENT: the prompt has 9000 tokens, the limit is 4096"))
    terminal = Terminal(server)
    terminal.expect("> ")
    terminal.type("A long one\n")
    terminal.expect("error: the prompt has 9000 tokens, the limit is 4096")
    terminal.expect("> ")
    server.play(answer("Yes."), answer(finish="stop", final=True))
    terminal.type("A short one\n")
    terminal.expect("Yes.")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert turns(server)[-1] == [("user", "A short one")]


def test_ctrl_c_at_the_terminal_exits_130(server: ScriptedServer) -> None:
    server.play(answer("Because"), hang())
    terminal = Terminal(server)
    terminal.expect("> ")
    terminal.type("Why?\n")
    terminal.expect("Because")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 130
    assert server.cancelled.wait(WAIT_S)
