"""Responses become chunks: their texts are the text, the last one has the finish reason, the counts and the times."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Step, answer, heartbeat, tensors
from tritonclient.grpc import service_pb2

from mixtral_client import Chunk, ProtocolError, Result, TokenLogProb
from mixtral_client.assembly import ChunkAssembler


def assemble(*steps: Step, times: list[float] | None = None) -> list[Chunk]:
    """Pushes the responses at the given times, the first of which is when the request is sent."""
    clock = iter(times) if times else itertools.count(0.0, 1.0)
    assembler = ChunkAssembler("id", clock=lambda: next(clock))
    chunks = [chunk for step in steps if (chunk := assembler.push(step.response)) is not None]
    assembler.end()
    return chunks


@given(st.lists(st.text() | st.none()), st.booleans())
def test_the_texts_of_all_chunks_are_the_text_whatever_is_empty(pieces: list[str | None], final_is_empty: bool) -> None:
    steps = [answer(piece) for piece in pieces]
    last = answer(finish="stop", final=True) if final_is_empty else answer("end", finish="stop", final=True)
    result = Result.join(assemble(*steps, last))
    assert result.text == "".join(piece or "" for piece in pieces) + ("" if final_is_empty else "end")
    assert result.finish_reason == "stop"


def test_only_the_last_chunk_has_usage_and_finish_reason() -> None:
    chunks = assemble(answer("a"), answer("b", finish="stop"), heartbeat(), answer(final=True))
    assert [(chunk.text, chunk.finish_reason, chunk.usage is None) for chunk in chunks] == [
        ("a", None, True),
        ("b", None, True),
        ("", "stop", False),
    ]


def test_heartbeats_give_no_chunk() -> None:
    chunks = assemble(heartbeat(), heartbeat(), answer("a", finish="length", final=True))
    assert [chunk.text for chunk in chunks] == ["a"]


def test_times_run_from_sending_and_skip_heartbeats() -> None:
    usage = assemble(
        heartbeat(),
        answer("a", num_input_tokens=[[5]], num_output_tokens=[[1]]),
        answer("b", num_input_tokens=[[5]], num_output_tokens=[[1]]),
        heartbeat(),
        answer("c", num_input_tokens=[[5]], num_output_tokens=[[1]], finish="length"),
        answer(final=True),
        times=[10.0, 11.0, 12.0, 12.5, 12.75, 13.0, 14.0],
    )[-1].usage
    assert usage is not None
    assert usage.ttft_s == 2.0
    assert usage.total_s == 4.0
    assert usage.tpot_s == 0.5  # two gaps in a second
    assert usage.tokens_per_s == 2.0
    assert (usage.num_input_tokens, usage.num_output_tokens) == (5, 3)


def test_a_response_may_bring_several_tokens() -> None:
    usage = assemble(
        answer("abc", num_output_tokens=[[3]]),
        answer("defg", num_output_tokens=[[4]], finish="length", final=True),
        times=[0.0, 1.0, 3.0],
    )[-1].usage
    assert usage is not None
    assert usage.num_output_tokens == 7
    assert usage.tpot_s == 0.5  # four tokens in the two seconds after the first response


def test_tokens_whose_text_is_held_back_count_as_the_first_token() -> None:
    usage = assemble(
        answer("", output_ids=[[[7]]]), answer("é", output_ids=[[[8]]], final=True), times=[0.0, 1.0, 5.0]
    )[-1].usage
    assert usage is not None
    assert usage.ttft_s == 1.0


def test_a_single_response_has_no_speed() -> None:
    usage = assemble(answer("all of it", num_output_tokens=[[3]], finish="stop", final=True))[-1].usage
    assert usage is not None
    assert usage.tpot_s is None
    assert usage.tokens_per_s is None


def test_a_generation_without_tokens_has_no_first_token() -> None:
    usage = assemble(answer(finish="timeout", num_output_tokens=[[0]], final=True))[-1].usage
    assert usage is not None
    assert usage.ttft_s is None


def test_ids_and_log_probabilities_are_joined_position_by_position() -> None:
    result = Result.join(
        assemble(
            answer(
                "a",
                prompt_log_probs=[[-0.5, -0.25]],
                output_ids=[[[1, 2]]],
                output_log_probs=[[[-1.0, -2.0]]],
                cum_log_probs=[[-3.0]],
                top_token_ids=[[[1, 9], [2, 8]]],
                top_token_log_probs=[[[-1.0, -1.5], [-2.0, -2.5]]],
            ),
            answer(
                "b",
                output_ids=[[[3]]],
                output_log_probs=[[[-4.0]]],
                cum_log_probs=[[-7.0]],
                top_token_ids=[[[3, 7]]],
                top_token_log_probs=[[[-4.0, -4.5]]],
                finish="length",
                final=True,
            ),
        )
    )
    assert result.token_ids == [1, 2, 3]
    assert result.log_probs == [-1.0, -2.0, -4.0]
    assert result.cum_log_prob == -7.0
    assert result.prompt_log_probs == [-0.5, -0.25]
    assert result.top_log_probs == [
        [TokenLogProb(1, -1.0), TokenLogProb(9, -1.5)],
        [TokenLogProb(2, -2.0), TokenLogProb(8, -2.5)],
        [TokenLogProb(3, -4.0), TokenLogProb(7, -4.5)],
    ]


def test_json_has_only_what_was_asked_for() -> None:
    result = Result.join(assemble(answer("a", finish="stop", final=True)))
    assert set(result.to_json()) == {"request_id", "text", "finish_reason", "usage"}


def test_a_server_that_gives_no_finish_reason_is_understood() -> None:
    assert assemble(answer("a"), answer(final=True))[-1].finish_reason is None


def test_a_stream_that_ends_without_a_final_response_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="without a final response"):
        assemble(answer("a"))


def test_half_a_character_is_an_error_and_not_a_replacement_character() -> None:
    broken = answer("a")
    broken.response.infer_response.raw_output_contents[0] = b"\x01\x00\x00\x00\xc3"
    with pytest.raises(ProtocolError, match="not UTF-8"):
        assemble(broken)


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [("text_output", [b"a"], 0), ("output_ids", [[[1, 2]]], 4), ("finish_reason", [[b"stop"]], 0)],
)
def test_a_tensor_with_less_than_its_shape_needs_is_an_error_and_not_an_empty_text(
    name: str, values: list[Any], kept: int
) -> None:
    broken = Step(service_pb2.ModelStreamInferResponse(infer_response=tensors(None, **{name: values})))
    contents = broken.response.infer_response.raw_output_contents
    contents[0] = contents[0][:kept]
    with pytest.raises(ProtocolError, match=rf"{name} has {kept // 4} values in {kept} bytes, its shape .* needs"):
        assemble(broken, answer("end", finish="stop", final=True))


def test_an_unfinished_generation_has_no_result() -> None:
    with pytest.raises(ValueError, match="not complete"):
        Result.join([Chunk("id", "a")])
