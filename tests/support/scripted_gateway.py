"""A stand-in for the gateway that answers as it is told: for what a healthy server cannot be made to do."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mixtral_gateway

STATIC = Path(mixtral_gateway.__file__).parent / "static"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Reply:
    """One answer to a chat request. pieces: the text, streamed; cut: the connection breaks off after them."""

    pieces: Sequence[str] = ()
    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    cut: bool = False
    pause_s: float = 0.0


@dataclass
class ScriptedGateway:
    """replies: one for each chat request; requests: their bodies as they came."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)


def events(reply: Reply) -> Iterator[dict[str, Any]]:
    """The chunks of a chat completion, the last one with the usage."""
    for piece in reply.pieces:
        yield {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    if reply.cut:
        return
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]}
    yield {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(reply.pieces), "total_tokens": 99}}


@contextmanager
def scripted_gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    stopped = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(STATIC))

        def end_headers(self) -> None:
            self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            super().end_headers()

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._json(200, {"object": "list", "data": [{"id": "mixtral", "object": "model"}]})
            elif self.path == "/health":
                self._json(200, {"status": "ok"})
            else:
                super().do_GET()

        def do_POST(self) -> None:
            gateway.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = gateway.replies.pop(0)
            if reply.status != 200:
                self._json(reply.status, {"error": {"message": reply.error, "param": None}}, reply.headers)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in events(reply):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                stopped.wait(reply.pause_s)
            if not reply.cut:
                self.wfile.write(b"data: [DONE]\n\n")

        def _json(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    gateway.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="scripted-gateway")
    thread.start()
    try:
        yield gateway
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
