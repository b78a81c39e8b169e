"""How requests on the TensorRT-LLM adapter end early: cancelled, timed out, refused, failed, or by closing it."""

import time
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
import trtllm_double
from engine_waiting import PATIENCE_S, final_output, wait_for

from mixtral_runtime.engine import FinishReason, Request
from mixtral_runtime.errors import Internal, Unavailable
from mixtral_runtime.tensorrt_llm.conversion import read_response
from mixtral_runtime.tensorrt_llm.engine import AWAIT_S

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8]
LONG = Request([3] * 40, 400)


def test_cancel_while_running_and_while_queued(open_double: Any) -> None:
    adapter = open_double(max_batch_size=1)
    running, queued = adapter.submit(LONG), adapter.submit(LONG)
    adapter.cancel(queued)
    output = final_output(adapter, queued)
    assert (output.finish_reason, output.token_ids) == (FinishReason.CANCELLED, [])
    adapter.cancel(running)
    assert final_output(adapter, running).finish_reason is FinishReason.CANCELLED
    adapter.cancel(running)  # again, and unknown: nothing happens
    adapter.cancel(12345)
    assert adapter.stats().finished["cancelled"] == 2


def test_a_timeout_counts_from_submission_also_in_the_queue(open_double: Any) -> None:
    adapter = open_double(max_batch_size=1)
    running = adapter.submit(LONG)
    waiting = adapter.submit(Request(PROMPT, 4, timeout_s=0.01))
    assert final_output(adapter, waiting).finish_reason is FinishReason.TIMEOUT
    adapter.cancel(running)
    assert final_output(adapter, running).finish_reason is FinishReason.CANCELLED
    late = adapter.submit(replace(LONG, timeout_s=0.05))
    assert final_output(adapter, late).finish_reason is FinishReason.TIMEOUT
    assert adapter.stats().finished["timeout"] == 2


def test_a_full_queue_refuses_one_request_and_hurts_no_other(open_double: Any) -> None:
    adapter = open_double(max_batch_size=1, max_queue_size=1)
    running = adapter.submit(LONG)
    wait_for(adapter, lambda stats: stats.active == 1)
    waiting = adapter.submit(LONG)
    with pytest.raises(Unavailable, match="the queue is full, the limit is 1 waiting requests"):
        adapter.submit(LONG)
    for request_id in (running, waiting):
        adapter.cancel(request_id)
        assert final_output(adapter, request_id).finish_reason is FinishReason.CANCELLED
    assert adapter.submit(LONG) > 0


def test_close_lets_requests_finish_within_the_drain_time(open_double: Any, collect: Any) -> None:
    adapter = open_double(max_batch_size=1)
    ids = [adapter.submit(Request(PROMPT, 6)) for _ in range(3)]
    adapter.close(drain_s=PATIENCE_S)
    with pytest.raises(Unavailable, match="the engine is shutting down"):
        adapter.submit(Request(PROMPT, 6))
    found = collect(adapter, *ids)  # outputs stay until they are polled
    assert [found[i].finish_reason for i in ids] == [FinishReason.LENGTH] * 3
    assert [len(found[i].token_ids) for i in ids] == [6] * 3
    adapter.close()  # again: nothing happens
    assert adapter.stats().finished["length"] == 3  # the executor is gone, its figures are not


def test_close_cancels_what_is_left_when_the_drain_time_is_up(open_double: Any, collect: Any) -> None:
    adapter = open_double(max_batch_size=1)
    ids = [adapter.submit(LONG) for _ in range(2)]
    adapter.close(drain_s=0.01)
    found = collect(adapter, *ids)
    assert [found[i].finish_reason for i in ids] == [FinishReason.CANCELLED] * 2


def test_an_executor_that_never_ends_its_requests_is_left(open_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixtral_runtime.tensorrt_llm.engine.CANCEL_S", 0.05)
    monkeypatch.setattr(trtllm_double.Executor, "await_responses", lambda self, timeout: [])
    adapter = open_double()
    request_id = adapter.submit(LONG)
    adapter.close()
    (output,) = adapter.poll(0.0)
    assert (output.id, output.finish_reason) == (request_id, FinishReason.CANCELLED)


def test_an_executor_that_answers_at_once_with_nothing_is_not_asked_without_end(
    open_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it does once it was shut down from inside."""
    calls: list[float] = []

    def nothing(self: Any, timeout: timedelta) -> list[Any]:
        calls.append(time.monotonic())
        return []

    monkeypatch.setattr(trtllm_double.Executor, "await_responses", nothing)
    adapter = open_double()
    time.sleep(3 * AWAIT_S)
    adapter.close()
    assert len(calls) <= 2 + (calls[-1] - calls[0]) / AWAIT_S


def test_an_executor_that_fails_ends_every_request_and_refuses_later_ones(
    open_double: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = open_double(max_batch_size=1)
    ids = [adapter.submit(LONG) for _ in range(2)]

    def fail(self: Any, timeout: timedelta) -> None:
        raise RuntimeError("secret detail of the executor")

    monkeypatch.setattr(trtllm_double.Executor, "await_responses", fail)
    errors = {request_id: final_output(adapter, request_id).error for request_id in ids[:1]}
    assert str(errors[ids[0]]) == "the engine has stopped after a failure"
    assert "secret detail" in caplog.text  # the log has it, the user has not
    with pytest.raises(Internal, match="the engine has stopped"):
        adapter.submit(LONG)
    adapter.cancel(ids[0])
    adapter.close(drain_s=PATIENCE_S)  # at once: nothing is live
    assert adapter.stats().finished["error"] == 2


def test_an_unreadable_response_fails_its_request_only(
    open_double: Any, collect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_double()

    def fail_for_long(trtllm: Any, response: Any, request: Request, before: int) -> Any:
        if request is LONG:
            raise ValueError("not what was expected")
        return read_response(trtllm, response, request, before)

    monkeypatch.setattr("mixtral_runtime.tensorrt_llm.engine.read_response", fail_for_long)
    bad, good = adapter.submit(LONG), adapter.submit(Request(PROMPT, 6))
    found = collect(adapter, bad, good)
    assert str(found[bad].error) == "the engine's response could not be read"
    assert found[good].finish_reason is FinishReason.LENGTH


def test_many_threads_submit_and_cancel_at_once(open_double: Any) -> None:
    adapter = open_double()
    ids: list[int] = []

    def client(seed: int) -> None:
        for i in range(6):
            request_id = adapter.submit(Request([seed] * (1 + i), 10 + i))
            ids.append(request_id)
            if i % 2:
                adapter.cancel(request_id)

    threads = [Thread(target=client, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    finals: set[int] = set()
    while len(finals) < 24:
        finals |= {output.id for output in adapter.poll(PATIENCE_S) if output.final}
    assert finals == set(ids)
    assert sum(adapter.stats().finished.values()) == 24
