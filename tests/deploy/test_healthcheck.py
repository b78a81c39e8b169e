"""The images' health check: 0 when the launcher answers that the server is ready, else 1."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "healthcheck.py"


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server's port that gives this status for the launcher's readiness."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def check(port: int) -> tuple[int, str]:
    environment = os.environ | {"MIXTRAL_HEALTH_PORT": str(port)}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(("status", "code"), [(200, 0), (400, 1), (503, 1)])
def test_what_the_launcher_answers_decides(status: int, code: int) -> None:
    with answering(status) as port:
        assert check(port) == (code, f"127.0.0.1:{port} answers {status}\n")


def test_a_server_that_is_not_there_is_not_well() -> None:
    with answering(200) as port:
        pass
    code, said = check(port)
    assert code == 1
    assert said.startswith(f"127.0.0.1:{port} does not answer: ")
