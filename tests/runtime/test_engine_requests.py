"""What a request gets from the engine: tokens, finish reasons, log probabilities, streaming or at once."""

from typing import Any

import pytest

from mixtral_runtime.engine import FinishReason, Request, SamplingParams
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.model import MixtralModel

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8]


def generate(engine: Any, collect: Any, **fields: Any) -> Any:
    request_id = engine.submit(Request(**{"prompt_ids": PROMPT, "max_tokens": 12, **fields}))
    return collect(engine, request_id)[request_id]


def greedy_by_hand(model: MixtralModel, count: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(int(model.forward_logits(tokens)[-1].argmax()))
    return tokens[len(PROMPT) :]


def test_greedy_tokens_are_the_models_best(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    found = generate(make_engine(), collect)
    assert found.token_ids == greedy_by_hand(model, 12)
    assert found.finish_reason is FinishReason.LENGTH
    assert found.error is None


def test_one_output_per_token_when_polled_at_once_and_fewer_when_polled_late(make_engine: Any, collect: Any) -> None:
    found = generate(make_engine(), collect)
    assert 1 <= len(found.outputs) <= 12
    assert found.outputs[-1].counts.input_tokens == len(PROMPT)
    assert [output.final for output in found.outputs] == [False] * (len(found.outputs) - 1) + [True]
    assert all(output.finish_reason is None for output in found.outputs[:-1])


def test_without_streaming_there_is_one_output_with_the_same_content(make_engine: Any, collect: Any) -> None:
    wanted: dict[str, Any] = {
        "return_log_probs": True,
        "return_prompt_log_probs": True,
        "top_log_probs": 2,
        "sampling": SamplingParams(temperature=1.0, seed=5),
    }
    engine = make_engine()
    streamed = generate(engine, collect, **wanted)
    whole = generate(engine, collect, streaming=False, **wanted)
    assert len(whole.outputs) == 1
    for what in ("token_ids", "log_probs", "top_log_probs", "prompt_log_probs", "finish_reason"):
        assert getattr(whole, what) == getattr(streamed, what)


def test_the_end_token_stops_and_is_not_part_of_the_output(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    expected = greedy_by_hand(model, 12)
    end_id = expected[5]
    found = generate(make_engine(), collect, end_id=end_id, return_log_probs=True)
    assert found.token_ids == expected[: expected.index(end_id)]
    assert len(found.log_probs) == len(found.token_ids)
    assert found.finish_reason is FinishReason.STOP


def test_an_end_token_at_once_gives_an_empty_output(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    found = generate(make_engine(), collect, end_id=greedy_by_hand(model, 1)[0], return_prompt_log_probs=True)
    assert found.token_ids == []
    assert found.finish_reason is FinishReason.STOP
    assert len(found.prompt_log_probs) == len(PROMPT) - 1


def test_a_stop_sequence_ends_the_output_and_is_part_of_it(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    expected = greedy_by_hand(model, 12)
    found = generate(make_engine(), collect, stop_sequences=[[159, 158], expected[3:6]])
    end = next(i for i in range(3, 13) if expected[i - 3 : i] == expected[3:6])
    assert found.token_ids == expected[:end]
    assert found.finish_reason is FinishReason.STOP


def test_a_stop_sequence_does_not_match_across_the_prompt(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    first = greedy_by_hand(model, 1)[0]
    found = generate(make_engine(), collect, max_tokens=1, stop_sequences=[[PROMPT[-1], first]])
    assert found.finish_reason is FinishReason.LENGTH


def test_log_probs_are_those_of_the_models_distribution(make_engine: Any, collect: Any, model: MixtralModel) -> None:
    found = generate(
        make_engine(),
        collect,
        sampling=SamplingParams(temperature=1.7, top_k=5, repetition_penalty=1.3, seed=3),
        return_log_probs=True,
        return_prompt_log_probs=True,
        top_log_probs=4,
    )
    tokens = PROMPT + found.token_ids
    expected = model.forward_logits(tokens).log_softmax(-1)
    of_next = [expected[i, tokens[i + 1]].item() for i in range(len(tokens) - 1)]
    assert found.prompt_log_probs == of_next[: len(PROMPT) - 1]
    assert found.log_probs == of_next[len(PROMPT) - 1 :]
    for position, top in enumerate(found.top_log_probs, start=len(PROMPT) - 1):
        values, token_ids = expected[position].topk(4)
        assert top.log_probs == values.tolist()
        assert top.token_ids == token_ids.tolist()


def test_prompt_log_probs_of_a_prompt_longer_than_any_chunk(
    make_engine: Any, collect: Any, model: MixtralModel
) -> None:
    prompt = [(13 * i * i + i) % 160 for i in range(300)]
    found = generate(make_engine(), collect, prompt_ids=prompt, max_tokens=2, return_prompt_log_probs=True)
    expected = model.forward_logits(prompt).log_softmax(-1)
    assert found.prompt_log_probs == [expected[i, prompt[i + 1]].item() for i in range(299)]
    assert all(output.prompt_log_probs is None for output in found.outputs[1:])


def test_nothing_is_returned_that_was_not_asked_for(make_engine: Any, collect: Any) -> None:
    for output in generate(make_engine(), collect).outputs:
        assert output.log_probs is None
        assert output.prompt_log_probs is None
        assert output.top_log_probs is None


def test_the_same_seed_gives_the_same_text_and_another_seed_another(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    texts = [generate(engine, collect, sampling=SamplingParams(1.0, seed=seed)).token_ids for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_repetition_penalty_counts_prompt_and_output(make_engine: Any, collect: Any) -> None:
    found = generate(make_engine(), collect, sampling=SamplingParams(repetition_penalty=100.0), max_tokens=40)
    assert len(set(PROMPT + found.token_ids)) == len(set(PROMPT)) + 40


def test_a_request_fills_the_sequence_length_to_the_last_token(make_engine: Any, collect: Any) -> None:
    engine = make_engine(max_seq_len=64, max_input_len=60)
    assert len(generate(engine, collect, prompt_ids=[3] * 24, max_tokens=40).token_ids) == 40
    with pytest.raises(InvalidArgument, match="max_tokens is 41, the limit for a prompt of 24 tokens is 40"):
        engine.submit(Request([3] * 24, 41))


def test_counters_follow_the_requests(make_engine: Any, collect: Any) -> None:
    engine = make_engine()
    for _ in range(2):
        generate(engine, collect)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.output_tokens) == (2 * len(PROMPT), 24)
    assert stats.finished == {"stop": 0, "length": 2, "cancelled": 0, "timeout": 0, "error": 0}
    assert (stats.active, stats.queued) == (0, 0)
    assert stats.kv_blocks_free == stats.kv_blocks_total
    assert stats.steps == 24
