"""Waiting for a quiet machine before a measurement."""

import time

import psutil

BUSIEST = 10.0  # per cent of all cores that others may use
SAMPLE_S = 0.2


class IdleGate:
    """Each call waits until the machine is at least 90 % idle, `longest_s` seconds at most. waited_s: all calls
    together. passed, refused: calls after which the machine was idle, or still was not."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.waited_s = 0.0
        self.passed = self.refused = 0

    def wait(self) -> None:
        begun = time.perf_counter()
        while (busy := psutil.cpu_percent(SAMPLE_S)) > BUSIEST and time.perf_counter() - begun < self._longest_s:
            pass
        self.waited_s += time.perf_counter() - begun
        if busy > BUSIEST:
            self.refused += 1
        else:
            self.passed += 1
