"""How requests end early: cancelled in every phase, timed out, refused, failed, or by closing the engine."""

import random
import time
from collections.abc import Iterator
from threading import Event, Semaphore, Thread
from typing import Any

import pytest
import torch
from engine_waiting import PATIENCE_S, final_output

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.engine import EngineStats, FinishReason, Request
from mixtral_runtime.errors import Internal, InvalidArgument, MixtralError, Unavailable
from mixtral_runtime.pytorch.batch import Batch
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.model import MixtralModel

PROMPT = list(range(1, 41))
POISON = 150  # a token id


class PacedModel(MixtralModel):
    """The real model, whose steps a test lets go one by one."""

    def start_pacing(self) -> None:
        self._begun, self._permits, self._free = Semaphore(0), Semaphore(0), Event()

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        self._begun.release()
        if not self._free.is_set():
            assert self._permits.acquire(timeout=PATIENCE_S)
        return super().forward(batch, cache)

    def wait_for_step(self) -> None:
        """Returns when a step has begun, which then stands still."""
        assert self._begun.acquire(timeout=PATIENCE_S), "no step began"

    def finish_step(self) -> None:
        self._permits.release()

    def run_free(self) -> None:
        self._free.set()
        self._permits.release()


@pytest.fixture
def paced(make_engine: Any, checkpoint: Checkpoint) -> Iterator[PacedModel]:
    model = PacedModel.load(checkpoint, "cpu")
    model.start_pacing()
    yield model
    model.run_free()


def all_free(stats: EngineStats) -> bool:
    return stats.kv_blocks_free == stats.kv_blocks_total and stats.active == stats.queued == 0


def test_cancel_while_queued(make_engine: Any, paced: PacedModel) -> None:
    engine = make_engine(paced, max_batch_size=1)
    running = engine.submit(Request(PROMPT, 4))
    paced.wait_for_step()
    queued = engine.submit(Request(PROMPT, 4))
    assert engine.stats().queued == 1
    engine.cancel(queued)
    paced.finish_step()
    output = final_output(engine, queued)
    assert (output.finish_reason, output.token_ids) == (FinishReason.CANCELLED, [])
    paced.run_free()
    assert final_output(engine, running).finish_reason is FinishReason.LENGTH
    assert all_free(engine.stats())


@pytest.mark.parametrize(("phase", "steps"), [("prefill", 2), ("decode", 6)])
def test_cancel_while_running_frees_the_blocks_when_the_step_ends(
    make_engine: Any, paced: PacedModel, phase: str, steps: int
) -> None:
    """16 tokens a step: the prompt of 40 takes three steps."""
    engine = make_engine(paced, max_num_tokens=16)
    request_id = engine.submit(Request(PROMPT, 100))
    for _ in range(steps - 1):
        paced.wait_for_step()
        paced.finish_step()
    paced.wait_for_step()
    assert engine.stats().active == 1
    assert (engine.stats().output_tokens > 0) == (phase == "decode")
    engine.cancel(request_id)
    paced.finish_step()
    assert final_output(engine, request_id).finish_reason is FinishReason.CANCELLED
    assert all_free(engine.stats())
    assert engine.stats().steps <= steps + 1, "more than the launched steps were computed for a cancelled request"


def test_cancel_of_one_that_gave_way_to_another(make_engine: Any, paced: PacedModel) -> None:
    """Three blocks of 32 tokens: when both sequences need their second one, there is only one left."""
    engine = make_engine(paced, max_seq_len=96, kv_cache_tokens=96, max_input_len=40)
    first, second = (engine.submit(Request([number] * 31, 60)) for number in (1, 2))
    while engine.stats().preemptions == 0:
        paced.wait_for_step()
        paced.finish_step()
    assert (engine.stats().active, engine.stats().queued) == (1, 1)
    engine.cancel(second)
    paced.run_free()
    output = final_output(engine, second)
    assert output.finish_reason is FinishReason.CANCELLED
    assert output.counts.output_tokens > 0
    assert final_output(engine, first).counts.output_tokens == 60
    assert all_free(engine.stats())


def test_cancelling_an_unknown_or_ended_request_does_nothing(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    engine.cancel(12345)
    request_id = engine.submit(Request(PROMPT, 2))
    assert collect(engine, request_id)[request_id].finish_reason is FinishReason.LENGTH
    engine.cancel(request_id)
    assert engine.poll(0.01) == []


def test_a_timeout_ends_waiting_and_running_requests_with_what_they_have(make_engine: Any, paced: PacedModel) -> None:
    engine = make_engine(paced, max_batch_size=1)
    running = engine.submit(Request(PROMPT, 100, timeout_s=1.0, streaming=False))
    paced.wait_for_step()
    queued = engine.submit(Request(PROMPT, 4, timeout_s=0.01))
    time.sleep(0.02)
    paced.finish_step()
    assert final_output(engine, queued).finish_reason is FinishReason.TIMEOUT
    time.sleep(1.0)
    paced.run_free()
    output = final_output(engine, running)
    assert output.finish_reason is FinishReason.TIMEOUT
    assert len(output.token_ids) == output.counts.output_tokens >= 1
    assert all_free(engine.stats())


def test_a_full_queue_refuses_at_once(make_engine: Any, paced: PacedModel) -> None:
    engine = make_engine(paced, max_batch_size=1, max_queue_size=2)
    engine.submit(Request(PROMPT, 4))
    paced.wait_for_step()
    engine.submit(Request(PROMPT, 4))
    engine.submit(Request(PROMPT, 4))
    with pytest.raises(Unavailable, match="the queue is full: 2 requests wait, the limit is 2"):
        engine.submit(Request(PROMPT, 4))


def test_a_bad_request_is_refused_before_any_work(make_engine: Any) -> None:
    engine = make_engine()
    with pytest.raises(InvalidArgument, match="the prompt has 401 tokens, the limit is 400"):
        engine.submit(Request([1] * 401, 4))
    with pytest.raises(InvalidArgument, match="the prompt has token id 160, ids run from 0 to 159"):
        engine.submit(Request([160], 4))
    assert engine.stats().steps == 0


def test_limits_beyond_the_model_are_refused(make_engine: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_seq_len is 513, the model's limit is 512 positions"):
        make_engine(max_seq_len=513)


class PoisonedModel(MixtralModel):
    """The real model, which raises when a batch holds the token POISON."""

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        if POISON in batch.token_ids:
            raise RuntimeError("secret detail of a kernel")
        return super().forward(batch, cache)


def test_a_step_that_raises_fails_only_the_requests_that_caused_it(
    make_engine: Any, collect: Any, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(PoisonedModel.load(checkpoint, "cpu"))
    bad, good = engine.submit(Request([1, POISON, 2], 10)), engine.submit(Request(PROMPT, 10))
    found = collect(engine, bad, good)
    assert found[bad].finish_reason is FinishReason.ERROR
    assert isinstance(found[bad].error, Internal)
    assert found[bad].error.text == "INTERNAL: the engine failed to compute this request"
    assert "secret detail of a kernel" in caplog.text  # the log has it, the user has not
    later = engine.submit(Request(PROMPT, 10))
    assert found[good].token_ids == collect(engine, later)[later].token_ids
    assert found[good].finish_reason is FinishReason.LENGTH
    assert all_free(engine.stats())


def test_logits_that_overflow_fail_one_request_and_leave_nothing_behind(
    make_engine: Any, collect: Any, checkpoint: Checkpoint
) -> None:
    """The blocks of the failed request are used again by the next, whose bits must not change."""
    model = MixtralModel.load(checkpoint, "cpu")
    clean = make_engine(model)
    request = Request(PROMPT, 10, return_log_probs=True)
    clean_id = clean.submit(request)
    expected = collect(clean, clean_id)[clean_id]
    model._embedding = model._embedding.clone()
    model._embedding[POISON] = float("nan")
    engine = make_engine(model, kv_cache_tokens=512)
    bad = engine.submit(Request([1, 2, POISON] * 100, 100))
    found = collect(engine, bad)[bad]
    assert found.error.text == "INTERNAL: the model's logits overflowed for this request"
    for _ in range(8):  # enough to come by every block
        good = engine.submit(request)
        found = collect(engine, good)[good]
        assert (found.token_ids, found.log_probs) == (expected.token_ids, expected.log_probs)


def test_a_fault_of_the_engine_itself_ends_every_request(
    make_engine: Any, paced: PacedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(paced, max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 4)) for _ in range(2)]
    paced.wait_for_step()

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine._scheduler, "schedule", fail)
    paced.finish_step()
    finals: dict[int, MixtralError | None] = {}
    while len(finals) < 2:
        finals |= {output.id: output.error for output in engine.poll(PATIENCE_S) if output.final}
    assert [str(finals[i]) for i in ids] == ["the engine has stopped after a failure"] * 2
    with pytest.raises(Internal, match="the engine has stopped"):
        engine.submit(Request(PROMPT, 4))


def test_close_lets_live_requests_finish_within_the_drain_time(make_engine: Any, collect: Any) -> None:
    engine = make_engine(max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 6)) for _ in range(3)]
    engine.close(drain_s=PATIENCE_S)
    with pytest.raises(Unavailable, match="the engine is shutting down"):
        engine.submit(Request(PROMPT, 6))
    found = collect(engine, *ids)  # outputs stay until they are polled
    assert [found[i].finish_reason for i in ids] == [FinishReason.LENGTH] * 3
    assert [len(found[i].token_ids) for i in ids] == [6] * 3
    engine.close()  # again: nothing happens


def test_close_cancels_what_is_left_when_the_drain_time_is_up(
    make_engine: Any, collect: Any, paced: PacedModel
) -> None:
    engine = make_engine(paced, max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 100)) for _ in range(2)]
    paced.wait_for_step()
    closing = Thread(target=engine.close, args=(0.01,))
    closing.start()
    time.sleep(0.05)
    paced.finish_step()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    found = collect(engine, *ids)
    assert [found[i].finish_reason for i in ids] == [FinishReason.CANCELLED] * 2
    assert all_free(engine.stats())


def test_many_threads_submit_and_cancel_at_once(make_engine: Any) -> None:
    engine = make_engine(max_batch_size=4, max_num_tokens=24, max_queue_size=1000)
    ids: list[int] = []
    cancelled: set[int] = set()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            request_id = engine.submit(Request([seed] * rng.randint(1, 60), rng.randint(1, 30), priority=rng.random()))
            ids.append(request_id)
            if rng.random() < 0.4:
                time.sleep(rng.random() / 50)
                cancelled.add(request_id)
                engine.cancel(request_id)

    threads = [Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    finals: dict[int, FinishReason | None] = {}
    while len(finals) < len(ids):
        for output in engine.poll(PATIENCE_S):
            assert output.id not in finals
            if output.final:
                finals[output.id] = output.finish_reason
    assert finals.keys() == set(ids)
    assert all(finals[i] is FinishReason.LENGTH for i in finals.keys() - cancelled)
    assert all_free(engine.stats())
    assert sum(engine.stats().finished.values()) == 48
