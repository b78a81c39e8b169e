"""Keeps one server serving: watches it, restarts it when it is broken, and lets it finish when it is told to stop."""

import threading
import time
from collections.abc import Callable
from functools import partial

from mixtral_runtime.errors import MixtralError
from mixtral_serving.counters import Counter, Counters, Drain
from mixtral_serving.server.canary import Canary, ask_canary
from mixtral_serving.server.health import Health
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.stubs import live_stubs
from mixtral_serving.server.supervision import Observation, RestartBudget, SupervisionSettings, fault

WATCH_S = 0.25
END_S = 2.0  # for the last responses of requests that are ended at the end of the drain time

Tell = Callable[[str], object]


class Watch:
    """One server that has been ready, as it looks from outside."""

    def __init__(self, server: ServerProcess, canary: Canary) -> None:
        self._server, self._canary = server, canary
        self._stubs = live_stubs(server.pid)
        now = time.monotonic()
        self._moved = {counter: (server.counters[counter], now) for counter in (Counter.PROGRESS, Counter.HANDLED)}

    def observe(self) -> Observation:
        counters = self._server.counters
        exit_code = self._server.poll()
        alive = live_stubs(self._server.pid)
        dead = {model for pid, model in self._stubs.items() if pid not in alive}
        return Observation(
            exit_code=exit_code,
            dead_stubs=() if exit_code is not None else tuple(sorted(dead)),
            canary_waits_s=self._canary.waits_s(),
            canary_failures=self._canary.failures,
            engine_idle_s=self._idle_s(Counter.PROGRESS),
            unhandled=max(counters[Counter.SENT] - counters[Counter.HANDLED], 0),
            detokenizer_idle_s=self._idle_s(Counter.HANDLED),
        )

    def _idle_s(self, counter: Counter) -> float:
        now, value = time.monotonic(), self._server.counters[counter]
        before, since = self._moved[counter]
        if value != before:
            self._moved[counter] = (value, now)
            return 0.0
        return now - since


class Supervisor:
    """start: makes a server that has not been started. check: asked of each server once it is ready, raises a
    MixtralError. tell: the operator's log. drain_s: how long running requests may go on after `stop`."""

    def __init__(
        self,
        start: Callable[[], ServerProcess],
        settings: SupervisionSettings,
        *,
        check: Callable[[ServerProcess], object],
        ready_timeout_s: float,
        drain_s: float,
        tell: Tell,
        on_ready: Callable[[ServerProcess], object],
    ) -> None:
        self.health = Health()
        self._start, self._settings, self._check = start, settings, check
        self._ready_timeout_s, self._drain_s = ready_timeout_s, drain_s
        self._tell, self._on_ready = tell, on_ready
        self._asked = threading.Event()
        self._hurry = threading.Event()
        self._starting: ServerProcess | None = None

    def stop(self) -> None:
        """Safe in a signal handler. The second call gives up the drain time."""
        if self._asked.is_set():
            self._hurry.set()
        self._asked.set()
        self.health.reasons = ["the server is stopping"]
        if self._starting is not None:
            self._starting.kill()  # nothing is being served yet

    def run(self) -> int:
        """Serves until `stop`: 0. 1 when there are no restarts left. Raises the MixtralError of a first start that
        fails: restarting would not mend it."""
        budget = RestartBudget(self._settings)
        while True:
            try:
                reason = self._serve()
            except MixtralError as error:
                if self._asked.is_set():
                    return 0
                if not self.health.started:
                    raise
                reason = f"the restart failed: {error}"
            if reason is None:
                return 0
            pause = budget.next_pause_s(time.monotonic())
            if pause is None:
                self.health.live = False
                self._tell(
                    f"error: {reason}; giving up after {self._settings.max_restarts} restarts within "
                    f"{self._settings.restart_window_s:g} s"
                )
                return 1
            self._tell(f"restarting in {pause:g} s: {reason}")
            self.health.reasons = [reason]
            if self._asked.wait(pause):
                return 0
            self.health.restarts += 1

    def _serve(self) -> str | None:
        """One server from start to end. The reason for a restart, None after `stop`."""
        with self._start() as server:
            self._starting = server
            try:
                server.wait_until_ready(self._ready_timeout_s)
                self._check(server)
            finally:
                self._starting = None
            canary = Canary(self._ask_canary(server), self._settings.canary_interval_s)
            watch = Watch(server, canary)
            if self._asked.is_set():
                return None
            self.health.started, self.health.reasons = True, []
            self._on_ready(server)
            canary.start()
            try:
                while not self._asked.wait(WATCH_S):
                    if (reason := fault(watch.observe(), self._settings)) is not None:
                        self.health.reasons = [reason]
                        server.kill()
                        return reason
                    reasons = [] if server.is_ready() else ["Triton does not answer that it is ready"]
                    if not self._asked.is_set():
                        self.health.reasons = reasons
            finally:
                canary.stop()
            self._drain(server)
            return None

    def _ask_canary(self, server: ServerProcess) -> Callable[[], None]:
        return partial(ask_canary, server.address.local_http, server.canary_id, self._settings.canary_timeout_s)

    def _drain(self, server: ServerProcess) -> None:
        """Before Triton hears of it: once it is told to stop it refuses the next step of running requests too."""
        counters = server.counters
        counters[Counter.DRAIN] = Drain.REFUSE
        if _wait_until_idle(counters, self._drain_s, self._hurry):
            return
        counters[Counter.DRAIN] = Drain.END
        if not _wait_until_idle(counters, END_S) and counters[Counter.LIVE]:
            server.kill()  # what does not end now would leave its client without an answer while Triton waits for it


def _wait_until_idle(counters: Counters, limit_s: float, hurry: threading.Event | None = None) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and not (hurry is not None and hurry.is_set()):
        if counters[Counter.LIVE] == 0 and counters[Counter.SENT] <= counters[Counter.HANDLED]:
            return True
        time.sleep(0.02)
    return False
