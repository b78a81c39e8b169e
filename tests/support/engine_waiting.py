"""Waiting for an engine in a test, with patience that a sound engine never needs."""

import time
from collections.abc import Callable

from mixtral_runtime.engine import Engine, EngineStats, Output

PATIENCE_S = 60.0


def final_output(engine: Engine, request_id: int) -> Output:
    """Drops what comes before, and other requests' outputs."""
    while True:
        outputs = engine.poll(PATIENCE_S)
        assert outputs, "the engine fell silent"
        for output in outputs:
            if output.id == request_id and output.final:
                return output


def wait_for(engine: Engine, condition: Callable[[EngineStats], object]) -> EngineStats:
    deadline = time.monotonic() + PATIENCE_S
    while not condition(stats := engine.stats()):
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
    return stats
