"""How long each step of the synthetic engine takes."""

import random
import time
from threading import Event

from synthetic_settings import Pause, SyntheticSettings


class StepClock:
    """Paces one thread's steps. They follow each other without drift while there is work: a step that was waited for
    too long shortens the next. One that is late delays all that follow, as in a real engine."""

    def __init__(self, settings: SyntheticSettings, opened: float | None = None) -> None:
        """opened: on the monotonic clock, from where pauses count their seconds; now if not given."""
        self._settings = settings
        self._opened = time.monotonic() if opened is None else opened
        self._random = random.Random(settings.seed)
        self._last_end: float | None = None
        self._interrupted = Event()

    def restart(self) -> None:
        """After idling: the next step begins when it is waited for, not where the last one ended."""
        self._last_end = None

    def interrupt(self) -> None:
        """From now on no step takes any time."""
        self._interrupted.set()

    def wait_for_end(self, step: int, tokens: int, requests: int) -> None:
        """Waits until the step with this number ends. tokens, requests: of its prefill. Called once for each step."""
        now = time.monotonic()
        end = self.end_of_step(step, now if self._last_end is None else self._last_end, tokens, requests)
        if end > now:
            self._interrupted.wait(end - now)
        self._last_end = max(end, now)

    def end_of_step(self, step: int, begin: float, tokens: int, requests: int) -> float:
        """When a step ends that begins at `begin`, on the monotonic clock. Each call draws the next jitter."""
        s = self._settings
        varied = s.step_s * (1 + s.jitter * (2 * self._random.random() - 1))
        end = begin + varied + tokens * s.prefill_token_s + requests * s.prefill_request_s
        for pause in s.pauses:
            end = self._after(pause, step, end)
        return end

    def _after(self, pause: Pause, step: int, end: float) -> float:
        if pause.at_step is not None:
            since = step - pause.at_step
            hit = since == 0 or (pause.every_steps is not None and since > 0 and since % pause.every_steps == 0)
            return end + pause.for_s if hit else end
        assert pause.at_s is not None
        into = end - self._opened - pause.at_s  # seconds into the pause, or past it
        if into < 0:
            return end
        if pause.every_s is not None:
            into %= pause.every_s
        return end + pause.for_s - into if into < pause.for_s else end
