"""The window between the engine model and the detokenizer, and the counters it stands on."""

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtral_runtime.engine import Counts, FinishReason, Output
from mixtral_serving.counters import ENVIRONMENT, Counter, Counters, Drain
from mixtral_serving.pending import Pending, merged
from mixtral_serving.window import STALL_S, Window


@pytest.fixture
def counters(tmp_path: Path) -> Counters:
    return Counters(tmp_path / "counters")


def write_from_another_process(path: Path) -> None:
    Counters(path)[Counter.HANDLED] = 2**63 + 1


def test_processes_share_the_counters(counters: Counters) -> None:
    child = multiprocessing.get_context("spawn").Process(target=write_from_another_process, args=(counters.path,))
    child.start()
    child.join()
    assert counters[Counter.HANDLED] == 2**63 + 1
    assert counters[Counter.DRAIN] == Drain.NONE


def test_a_stub_finds_the_counters_of_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "named"))
    Counters.of_server()[Counter.SENT] = 7
    assert Counters(tmp_path / "named")[Counter.SENT] == 7


def test_a_window_closes_when_so_many_are_unanswered_and_opens_with_each_answer(counters: Counters) -> None:
    window = Window(counters, size=3)
    for _ in range(3):
        assert window.is_open(0.0)
        window.sent()
    assert not window.is_open(0.01)
    counters[Counter.HANDLED] += 1
    assert window.is_open(0.02)
    window.sent()
    assert not window.is_open(0.03)


def test_responses_that_nobody_will_answer_are_forgiven(counters: Counters) -> None:
    """A client that asks for none of the detokenizer's outputs makes the server skip it."""
    window = Window(counters, size=2)
    window.sent()
    window.sent()
    assert not window.is_open(0.01)
    assert window.is_open(0.02 + STALL_S)
    window.sent()
    window.sent()
    assert not window.is_open(0.03 + STALL_S)
    counters[Counter.HANDLED] += 1
    assert window.is_open(0.04 + STALL_S)


def test_late_answers_after_a_forgiven_stall_do_not_open_the_window_for_good(counters: Counters) -> None:
    window = Window(counters, size=2)
    window.sent()
    window.sent()
    assert not window.is_open(9.0)
    assert window.is_open(10.0)  # forgiven, but then they are answered after all
    counters[Counter.HANDLED] += 2
    sent = 0
    while window.is_open(10.01) and sent < 100:
        window.sent()
        sent += 1
    assert sent == 2


def output(request_id: int, *ids: int, final: bool = False, **fields: object) -> Output:
    reason = FinishReason.LENGTH if final else None
    return Output(request_id, list(ids), Counts(1, len(ids)), final=final, finish_reason=reason, **fields)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=60), st.integers(1, 5))
def test_every_token_of_every_stream_comes_once_and_in_order(
    events: list[tuple[int, int, bool]], interval: int
) -> None:
    pending = Pending()
    made: dict[int, list[int]] = {}
    sent: dict[int, list[int]] = {}

    def send() -> None:
        taken = pending.take()
        sent.setdefault(taken.id, []).extend(taken.token_ids)

    for stream, count, send_now in events:
        ids = list(range(len(made.setdefault(stream, [])), len(made[stream]) + count))
        made[stream] += ids
        pending.add(output(stream, *ids), interval)
        if send_now and pending.ready:
            send()
    for stream in made:
        pending.add(output(stream, final=True), interval)
    while pending.ready:
        send()
    assert sent == made


def test_streams_take_turns() -> None:
    pending = Pending()
    for stream, token in ((1, 10), (2, 20), (1, 11), (3, 30), (1, 12)):
        pending.add(output(stream, token))
    assert [(taken.id, taken.token_ids) for taken in (pending.take() for _ in range(3))] == [
        (1, [10, 11, 12]),
        (2, [20]),
        (3, [30]),
    ]
    assert not pending.ready


def test_a_dropped_stream_leaves_nothing() -> None:
    pending = Pending()
    pending.add(output(1, 5))
    pending.add(output(2, 5), interval=9)
    pending.drop(1)
    pending.drop(2)
    assert not pending.ready
    pending.add(output(2, 6, final=True))
    assert pending.take().token_ids == [6]


def test_joined_outputs_keep_what_belongs_to_tokens_prompt_and_end() -> None:
    whole = merged(
        [
            output(1, 5, log_probs=[-0.5], prompt_log_probs=[-1.0], queued_s=0.25),
            output(1, 6, 7, log_probs=[-0.6, -0.7]),
            output(1, final=True, log_probs=[]),
        ]
    )
    assert (whole.token_ids, whole.log_probs, whole.prompt_log_probs) == ([5, 6, 7], [-0.5, -0.6, -0.7], [-1.0])
    assert (whole.final, whole.finish_reason, whole.queued_s) == (True, FinishReason.LENGTH, 0.25)
