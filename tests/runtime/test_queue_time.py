"""How long a request waited for its first step: told once, on the first output, by the engine itself."""

from typing import Any

from mixtral_runtime.engine import Output, Request
from mixtral_runtime.pytorch.engine import PyTorchEngine

PATIENCE_S = 60.0


def outputs_of(engine: PyTorchEngine, ids: set[int]) -> dict[int, list[Output]]:
    found: dict[int, list[Output]] = {request_id: [] for request_id in ids}
    while not all(outputs and outputs[-1].final for outputs in found.values()):
        for output in engine.poll(PATIENCE_S):
            found[output.id].append(output)
    return found


def test_the_first_output_tells_it(make_engine: Any) -> None:
    engine = make_engine()
    request_id = engine.submit(Request([1, 2, 3], max_tokens=20))
    first, *later = outputs_of(engine, {request_id})[request_id]
    assert first.queued_s is not None
    assert 0 <= first.queued_s < PATIENCE_S
    assert [output.queued_s for output in later] == [None] * len(later)


def test_who_waits_for_a_slot_waited_longer_than_who_held_it_before(make_engine: Any) -> None:
    engine = make_engine(max_batch_size=1)
    ids = [engine.submit(Request([1, 2, 3], max_tokens=30, streaming=False)) for _ in range(3)]
    found = outputs_of(engine, set(ids))
    waits = [found[request_id][0].queued_s or 0.0 for request_id in ids]
    assert waits == sorted(waits)
    assert waits[0] < waits[2]


def test_a_request_that_never_ran_has_none(make_engine: Any) -> None:
    engine = make_engine(max_batch_size=1)
    running = engine.submit(Request([1, 2, 3], max_tokens=100, streaming=False))
    waiting = engine.submit(Request([1, 2, 3], max_tokens=5))
    engine.cancel(waiting)
    found = outputs_of(engine, {running, waiting})
    assert [output.queued_s for output in found[waiting]] == [None]
