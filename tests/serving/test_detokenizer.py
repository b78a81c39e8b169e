"""Engine responses become the client's: cut at stop strings, one for one, and nothing is kept past the end."""

import time
from typing import Any

import pytest

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.detokenizer import Detokenizer, Reply
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.stream_chunk import NO_EXTRAS, ChunkExtras
from mixtral_serving.stream_context import StreamContext

STREAM = 2**63 + 5


def engine_response(ids: list[int], **extras: Any) -> tuple[list[int], ChunkExtras]:
    return ids, ChunkExtras(**extras) if extras else NO_EXTRAS


def context(**fields: Any) -> bytes:
    return StreamContext(**({"prompt_tail": [], "stops": []} | fields)).pack()


def text(reply: Reply) -> str:
    return reply.text.decode()


def outputs(reply: Reply) -> dict[str, Any]:
    return reply.outputs or {}


REASON = "length"


@pytest.fixture
def ids(mixtral_builder: PromptBuilder) -> list[int]:
    encoded: list[int] = mixtral_builder.tokenizer.backend_tokenizer.encode(
        "one two three", add_special_tokens=False
    ).ids
    assert len(encoded) == 3
    return encoded


@pytest.fixture
def detokenizer(mixtral_builder: PromptBuilder) -> Detokenizer:
    return Detokenizer(mixtral_builder.vocabulary)


def test_a_stream_lives_from_its_context_to_its_finish_reason(detokenizer: Detokenizer, ids: list[int]) -> None:
    first = detokenizer.handle(STREAM, *engine_response(ids[:1], context=context(return_output_ids=True)))
    assert (text(first), len(detokenizer)) == (" one", 1)
    last = detokenizer.handle(STREAM, *engine_response(ids[1:], finish_reason=REASON))
    assert (text(last), len(detokenizer)) == (" two three", 0)
    assert outputs(last)["finish_reason"].item() == b"length"
    assert outputs(last)["output_ids"].tolist() == [[ids[1:]]]


@pytest.mark.parametrize(("streams", "interval_s"), [(1, 0.1), (50, 0.25), (1000, 1.0)])
def test_the_client_of_each_stream_is_asked_for_less_often_with_more_streams_but_every_second(
    detokenizer: Detokenizer, ids: list[int], monkeypatch: pytest.MonkeyPatch, streams: int, interval_s: float
) -> None:
    begun = now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for stream in range(streams):
        detokenizer.handle(stream, *engine_response(ids[:1], context=context()))
    asked: list[float] = []
    while len(asked) < 3:
        now += 0.01
        if detokenizer.handle(0, *engine_response(ids[:1])).check:
            asked.append(now - begun)
    assert asked == pytest.approx([interval_s, 2 * interval_s, 3 * interval_s], abs=0.05)


def test_heartbeats_and_responses_without_tokens_carry_no_counts(detokenizer: Detokenizer, ids: list[int]) -> None:
    beat = detokenizer.handle(STREAM, *engine_response([], context=context(return_num_output_tokens=True)))
    assert text(beat) == ""
    assert (beat.count, outputs(beat)) == (0, {})
    reply = detokenizer.handle(STREAM, *engine_response(ids[:1]))
    assert (reply.count, outputs(reply)) == (1, {})


def test_a_stop_string_cuts_everything_behind_its_last_token(detokenizer: Detokenizer, ids: list[int]) -> None:
    detokenizer.handle(
        STREAM,
        *engine_response([], context=context(stops=["two"], return_output_ids=True, return_num_output_tokens=True)),
    )
    extras = {
        "log_probs": [-1.0, -2.0, -4.0],
        "top_ids": [[0, 1], [2, 3], [4, 5]],
        "top_log_probs": [[0.0, 0.0]] * 3,
    }
    cut = detokenizer.handle(STREAM, *engine_response(ids, **extras))
    assert (text(cut), cut.stop, cut.ended) == (" one ", True, False)
    assert outputs(cut)["finish_reason"].item() == b"stop"
    assert cut.count == 2
    assert outputs(cut)["output_ids"].tolist() == [[ids[:2]]]
    assert outputs(cut)["output_log_probs"].tolist() == [[[-1.0, -2.0]]]
    assert outputs(cut)["cum_log_probs"].item() == -3.0
    assert outputs(cut)["top_token_ids"].shape == (1, 2, 2)

    late = detokenizer.handle(STREAM, *engine_response(ids, **extras))
    assert (text(late), late.count, outputs(late), late.stop) == ("", 0, {}, False)
    final = detokenizer.handle(STREAM, *engine_response([], finish_reason="cancelled"))
    assert (outputs(final), final.ended, len(detokenizer)) == ({}, True, 0)


def test_a_stop_string_in_the_last_response_needs_no_stop_request(detokenizer: Detokenizer, ids: list[int]) -> None:
    only = engine_response(ids, context=context(stops=["two"]), finish_reason=REASON)
    reply = detokenizer.handle(STREAM, *only)
    assert (text(reply), reply.stop, reply.ended) == (" one ", False, True)
    assert outputs(reply)["finish_reason"].item() == b"stop"


def test_the_prompt_comes_first_when_asked_for(detokenizer: Detokenizer, ids: list[int]) -> None:
    detokenizer.handle(STREAM, *engine_response([], context=context(prompt_text="zero")))
    first = detokenizer.handle(STREAM + 1, *engine_response(ids[:1], context=context(prompt_text="zero")))
    assert text(first) == "zero one"


def test_an_engine_error_is_raised_with_its_code_and_ends_the_stream(detokenizer: Detokenizer) -> None:
    detokenizer.handle(STREAM, *engine_response([], context=context()))
    with pytest.raises(InvalidArgument, match=r"^too much: 5$"):
        detokenizer.handle(STREAM, *engine_response([], error="INVALID_ARGUMENT: too much: 5"))
    assert len(detokenizer) == 0


def test_streams_do_not_mix(detokenizer: Detokenizer, mixtral_builder: PromptBuilder) -> None:
    euro = [3 + byte for byte in "€".encode()]  # three byte tokens each
    for stream in (1, 2):
        detokenizer.handle(stream, *engine_response([], context=context()))
    pieces: dict[int, str] = {1: "", 2: ""}
    for token in euro:
        for stream in (1, 2):
            pieces[stream] += text(detokenizer.handle(stream, *engine_response([token])))
    assert pieces == {1: "€", 2: "€"}


def test_tokens_without_a_stream_are_decoded_by_themselves(detokenizer: Detokenizer, ids: list[int]) -> None:
    assert text(detokenizer.handle(None, *engine_response(ids))) == " one two three"
    assert len(detokenizer) == 0


def test_a_stream_that_never_ends_is_forgotten_when_it_is_silent_for_long(
    detokenizer: Detokenizer, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may call this model with a context of their own; the table must not grow by that."""
    monkeypatch.setattr("mixtral_serving.detokenizer.SWEEP_S", 0.0)
    detokenizer.handle(STREAM, *engine_response(ids[:1], context=context()))
    detokenizer.handle(STREAM + 1, *engine_response(ids[:1], context=context()))
    assert len(detokenizer) == 2
    monkeypatch.setattr("mixtral_serving.detokenizer.SILENT_S", 0.0)
    detokenizer.handle(STREAM + 1, *engine_response(ids[1:2]))
    assert len(detokenizer) == 1
    assert text(detokenizer.handle(STREAM + 1, *engine_response(ids[2:], finish_reason=REASON))) == " three"
