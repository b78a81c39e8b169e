"""Engine responses become the client's: cut at stop strings, one for one, and nothing is kept past the end."""

from typing import Any

import numpy as np
import pytest

from mixtral_runtime.errors import InvalidArgument
from mixtral_serving.detokenizer import Detokenizer, Reply
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.tensors import Tensors

STREAM = 2**63 + 5


def engine_response(ids: list[int], **tensors: Any) -> tuple[Tensors, list[int]]:
    return Tensors({name: np.asarray(value) for name, value in tensors.items()}), ids


def context(**fields: Any) -> Any:
    return StreamContext(**({"prompt_tail": [], "stops": []} | fields)).pack()


def text(reply: Reply) -> str:
    value: bytes = reply.outputs["OUTPUT"][0]
    return value.decode()


REASON = np.array([[b"length"]], np.object_)


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
    first = detokenizer.handle(STREAM, *engine_response(ids[:1], STREAM_CONTEXT=context(return_output_ids=True)))
    assert (text(first), len(detokenizer)) == (" one", 1)
    assert first.outputs["OUTPUT"].shape == (1,)  # NVIDIA's client fails on [1, 1]
    last = detokenizer.handle(STREAM, *engine_response(ids[1:], FINISH_REASON=REASON))
    assert (text(last), len(detokenizer)) == (" two three", 0)
    assert last.outputs["finish_reason"].item() == b"length"
    assert last.outputs["output_ids"].tolist() == [[ids[1:]]]


def test_heartbeats_and_responses_without_tokens_carry_no_counts(detokenizer: Detokenizer, ids: list[int]) -> None:
    counts = {"NUM_INPUT_TOKENS": [[4]]}
    beat = detokenizer.handle(
        STREAM, *engine_response([], STREAM_CONTEXT=context(return_num_output_tokens=True), **counts)
    )
    assert text(beat) == ""
    assert set(beat.outputs) == {"OUTPUT"}
    reply = detokenizer.handle(STREAM, *engine_response(ids[:1], **counts))
    assert reply.outputs["num_input_tokens"].item() == 4
    assert reply.outputs["num_output_tokens"].item() == 1


def test_a_stop_string_cuts_everything_behind_its_last_token(detokenizer: Detokenizer, ids: list[int]) -> None:
    detokenizer.handle(
        STREAM,
        *engine_response(
            [], STREAM_CONTEXT=context(stops=["two"], return_output_ids=True, return_num_output_tokens=True)
        ),
    )
    extras = {
        "OUTPUT_LOG_PROBS": np.array([[[-1.0, -2.0, -4.0]]], np.float32),
        "TOP_TOKEN_IDS": np.arange(6).reshape(1, 3, 2),
        "TOP_TOKEN_LOG_PROBS": np.zeros((1, 3, 2), np.float32),
    }
    cut = detokenizer.handle(STREAM, *engine_response(ids, **extras))
    assert (text(cut), cut.stop, cut.ended) == (" one ", True, False)
    assert cut.outputs["finish_reason"].item() == b"stop"
    assert cut.outputs["num_output_tokens"].item() == 2
    assert cut.outputs["output_ids"].tolist() == [[ids[:2]]]
    assert cut.outputs["output_log_probs"].tolist() == [[[-1.0, -2.0]]]
    assert cut.outputs["cum_log_probs"].item() == -3.0
    assert cut.outputs["top_token_ids"].shape == (1, 2, 2)

    late = detokenizer.handle(STREAM, *engine_response(ids, **extras))
    assert (text(late), set(late.outputs), late.stop) == ("", {"OUTPUT"}, False)
    final = detokenizer.handle(STREAM, *engine_response([], FINISH_REASON=np.array([[b"cancelled"]], np.object_)))
    assert (set(final.outputs), final.ended, len(detokenizer)) == ({"OUTPUT"}, True, 0)


def test_a_stop_string_in_the_last_response_needs_no_stop_request(detokenizer: Detokenizer, ids: list[int]) -> None:
    only = engine_response(ids, STREAM_CONTEXT=context(stops=["two"]), FINISH_REASON=REASON)
    reply = detokenizer.handle(STREAM, *only)
    assert (text(reply), reply.stop, reply.ended) == (" one ", False, True)
    assert reply.outputs["finish_reason"].item() == b"stop"


def test_the_prompt_comes_first_when_asked_for(detokenizer: Detokenizer, ids: list[int]) -> None:
    detokenizer.handle(STREAM, *engine_response([], STREAM_CONTEXT=context(prompt_text="zero")))
    first = detokenizer.handle(STREAM + 1, *engine_response(ids[:1], STREAM_CONTEXT=context(prompt_text="zero")))
    assert text(first) == "zero one"


def test_an_engine_error_is_raised_with_its_code_and_ends_the_stream(detokenizer: Detokenizer) -> None:
    detokenizer.handle(STREAM, *engine_response([], STREAM_CONTEXT=context()))
    error = np.array([[b"INVALID_ARGUMENT: too much: 5"]], np.object_)
    with pytest.raises(InvalidArgument, match=r"^too much: 5$"):
        detokenizer.handle(STREAM, *engine_response([], STREAM_ERROR=error))
    assert len(detokenizer) == 0


def test_streams_do_not_mix(detokenizer: Detokenizer, mixtral_builder: PromptBuilder) -> None:
    euro = [3 + byte for byte in "€".encode()]  # three byte tokens each
    for stream in (1, 2):
        detokenizer.handle(stream, *engine_response([], STREAM_CONTEXT=context()))
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
    detokenizer.handle(STREAM, *engine_response(ids[:1], STREAM_CONTEXT=context()))
    detokenizer.handle(STREAM + 1, *engine_response(ids[:1], STREAM_CONTEXT=context()))
    assert len(detokenizer) == 2
    monkeypatch.setattr("mixtral_serving.detokenizer.SILENT_S", 0.0)
    detokenizer.handle(STREAM + 1, *engine_response(ids[1:2]))
    assert len(detokenizer) == 1
    assert text(detokenizer.handle(STREAM + 1, *engine_response(ids[2:], FINISH_REASON=REASON))) == " three"
