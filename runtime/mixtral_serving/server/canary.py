"""A request of one token, now and then, through the whole path: Triton's own health answers say nothing of it."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from mixtral_runtime.errors import Internal
from mixtral_serving.server.local_http import open_local


def ask_canary(url: str, request_id: str, timeout_s: float) -> None:
    """Raises Internal when the engine fails; OSError, TimeoutError among them, when there is no answer or the queue is
    full, which says nothing of the engine behind it.

    It goes over HTTP, which stays on loopback. By its id the engine puts it before all that wait.
    """
    body = {"id": request_id, "text_input": ".", "max_tokens": 1, "timeout_ms": max(1, int(timeout_s * 1000))}
    request = urllib.request.Request(f"{url}/v2/models/ensemble/generate", json.dumps(body).encode())
    try:
        with open_local(request, timeout_s) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        if "INTERNAL:" in text:
            raise Internal(text) from error
        if "UNAVAILABLE:" in text:
            raise OSError(text) from error


class Canary:
    """Asks again and again from a thread of its own, and tells how long an answer has been missing.

    ask: raises Internal when the engine failed, OSError when no answer came.
    """

    def __init__(self, ask: Callable[[], None], interval_s: float) -> None:
        self._ask, self._interval_s = ask, interval_s
        self._waiting_since: float | None = None
        self.failures = 0  # in a row
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for an answer that is missing."""
        self._stopping.set()

    def waits_s(self) -> float:
        """Since the first question after the last answer; 0 when none is open."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            try:
                self._ask()
                self.failures = 0
            except Internal:
                self.failures += 1
            except OSError:  # the question stays open
                continue
            self._waiting_since = None
