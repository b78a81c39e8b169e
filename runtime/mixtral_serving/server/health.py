"""What an orchestrator asks: /live, /startup, /ready over HTTP, answered with the truth about the whole path."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass(slots=True)
class Health:
    """Written by the supervisor. reasons: why it is not ready, empty when it is."""

    live: bool = True
    started: bool = False
    reasons: list[str] = field(default_factory=lambda: ["the server is starting"])
    restarts: int = 0

    @property
    def ready(self) -> bool:
        return self.started and not self.reasons


class HealthEndpoint:
    """Answers 200 or 503 with JSON {"ok", "reasons", "restarts"}. Use it as a context manager."""

    def __init__(self, host: str, port: int, health: Health) -> None:
        """Raises OSError when the port is taken."""
        checks = {
            "/live": lambda: health.live,
            "/startup": lambda: health.started,
            "/ready": lambda: health.ready,
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # seconds: a caller that sends nothing does not keep its thread

            def do_GET(self) -> None:
                check = checks.get(self.path.partition("?")[0])
                if check is None:
                    self.send_error(404, "ask for /live, /startup or /ready")
                    return
                ok = check()
                body = json.dumps({"ok": ok, "reasons": health.reasons, "restarts": health.restarts}).encode()
                self.send_response(200 if ok else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds and are no news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> "HealthEndpoint":
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
