"""When a server must be restarted: the rule, apart from the processes it is applied to."""

from dataclasses import dataclass

from mixtral_runtime.settings import check_range


@dataclass(frozen=True, slots=True)
class SupervisionSettings:
    """A canary is a request of one token through the whole path.

    canary_interval_s: between two canaries. canary_timeout_s: how long one may be without an answer while nothing else
    moves; it must exceed the longest single step of the engine. max_restarts: so many within restart_window_s, then the
    launcher gives up. backoff_s: before the first restart, doubled for each further one.
    """

    canary_interval_s: float = 10.0
    canary_timeout_s: float = 60.0
    max_restarts: int = 5
    restart_window_s: float = 600.0
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        check_range("canary_interval_s", self.canary_interval_s, above=0)
        check_range("canary_timeout_s", self.canary_timeout_s, above=0)
        check_range("max_restarts", self.max_restarts, at_least=0)
        check_range("restart_window_s", self.restart_window_s, above=0)
        check_range("backoff_s", self.backoff_s, at_least=0)


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen of a server that has been ready. Times in seconds.

    exit_code: None while it runs. dead_stubs: models whose process is gone. canary_waits_s: of the canary without an
    answer, 0 with none. canary_failures: canaries in a row that the engine answered with INTERNAL. engine_idle_s: since
    the engine's last step that was also sent. unhandled: responses that the detokenizer has not answered.
    detokenizer_idle_s: since its last answer.
    """

    exit_code: int | None
    dead_stubs: tuple[str, ...]
    canary_waits_s: float
    canary_failures: int
    engine_idle_s: float
    unhandled: int
    detokenizer_idle_s: float


FAILURES_IN_A_ROW = 2


def fault(seen: Observation, settings: SupervisionSettings) -> str | None:
    """Why the server must be restarted, or None. A busy server is left alone: its canary may be late as long as the
    engine makes steps and the detokenizer answers what it gets."""
    if seen.exit_code is not None:
        return f"the server ended by itself, exit code {seen.exit_code}"
    if seen.dead_stubs:
        return f"the process of {', '.join(seen.dead_stubs)} is dead"
    if seen.canary_failures >= FAILURES_IN_A_ROW:
        return f"{seen.canary_failures} canary requests in a row failed in the engine"
    limit = settings.canary_timeout_s
    if seen.canary_waits_s > limit:
        if seen.unhandled and seen.detokenizer_idle_s > limit:
            return f"a canary request has no answer for {limit:g} s and the detokenizer stands still"
        if seen.engine_idle_s > limit:
            return f"a canary request has no answer for {limit:g} s and the engine stands still"
    return None


class RestartBudget:
    """How often a server may still be restarted, and after which pause."""

    def __init__(self, settings: SupervisionSettings) -> None:
        self._settings = settings
        self._restarts: list[float] = []

    def next_pause_s(self, now: float) -> float | None:
        """Takes one restart; None when there is none left in the window."""
        self._restarts = [at for at in self._restarts if now - at < self._settings.restart_window_s]
        if len(self._restarts) >= self._settings.max_restarts:
            return None
        self._restarts.append(now)
        return float(min(self._settings.backoff_s * 2 ** (len(self._restarts) - 1), 60.0))
