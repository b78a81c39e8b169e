"""The TensorRT-LLM adapter over the strict double of the bindings: what a request gets, compared with the PyTorch
engine. No TensorRT-LLM runs here."""

from typing import Any

import pytest
from engine_waiting import PATIENCE_S, final_output, wait_for

from mixtral_runtime.engine import FinishReason, Request, SamplingParams
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.pytorch.model import MixtralModel

PROMPT = [1, 17, 5, 90, 33, 2, 77, 140, 8]
LONG = Request([3] * 40, 400)


def generate(engine: Any, collect: Any, **fields: Any) -> Any:
    request_id = engine.submit(Request(**{"prompt_ids": PROMPT, "max_tokens": 12, **fields}))
    return collect(engine, request_id)[request_id]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling": SamplingParams(temperature=1.0, seed=5)},
        {"sampling": SamplingParams(temperature=0.8, top_k=5, top_p=0.9, seed=2**64 - 1)},
        {"sampling": SamplingParams(temperature=1.5, min_p=0.2, repetition_penalty=1.3, seed=9)},
        {"sampling": SamplingParams(temperature=1.5, top_k=1)},
        {"sampling": SamplingParams(repetition_penalty=50.0)},
        {"sampling": SamplingParams(temperature=1.0, seed=5), "return_log_probs": True},
        {"return_log_probs": True},
        {"priority": 1.0, "timeout_s": 60.0},
        {"sampling": SamplingParams(presence_penalty=2.0, frequency_penalty=1.5)},
        {
            "sampling": SamplingParams(temperature=1.0, presence_penalty=-0.5, seed=3),
            "logit_bias": {7: 3.0, 90: -100.0},
        },
        {"bad_sequences": [[5], [8, 33], [90, 17, 2]], "min_tokens": 6, "end_id": 44},
    ],
)
def test_a_request_gives_what_the_pytorch_engine_gives(
    open_double: Any, make_engine: Any, collect: Any, fields: dict[str, Any], streaming: bool
) -> None:
    found = generate(open_double(), collect, streaming=streaming, **fields)
    expected = generate(make_engine(), collect, streaming=streaming, **fields)
    for what in ("token_ids", "log_probs", "finish_reason", "error"):
        assert getattr(found, what) == getattr(expected, what), what
    assert found.outputs[-1].counts == expected.outputs[-1].counts
    if not streaming:
        assert len(found.outputs) == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_the_end_token_is_no_output_and_a_stop_sequence_is(
    open_double: Any, make_engine: Any, collect: Any, streaming: bool
) -> None:
    adapter, reference = open_double(), make_engine()
    tokens = generate(reference, collect).token_ids
    for fields in (
        {"end_id": tokens[5]},
        {"end_id": tokens[0]},
        {"stop_sequences": [[159, 158], tokens[3:6]]},
        {"end_id": None},
    ):
        fields |= {"streaming": streaming, "return_log_probs": True}
        found, expected = generate(adapter, collect, **fields), generate(reference, collect, **fields)
        assert found.token_ids == expected.token_ids
        assert found.log_probs == expected.log_probs
        assert found.finish_reason is expected.finish_reason


def test_many_requests_at_once_do_not_mix(open_double: Any, make_engine: Any, collect: Any) -> None:
    requests = [
        Request(PROMPT[: 1 + i % 9], 5 + i, sampling=SamplingParams(1.0, seed=i), streaming=i % 3 > 0)
        for i in range(16)
    ]
    adapter, reference = open_double(), make_engine()
    ids = [adapter.submit(request) for request in requests]
    expected_ids = [reference.submit(request) for request in requests]
    found, expected = collect(adapter, *ids), collect(reference, *expected_ids)
    assert [found[i].token_ids for i in ids] == [expected[i].token_ids for i in expected_ids]


def test_polled_late_a_stream_is_one_output(open_double: Any, collect: Any) -> None:
    adapter = open_double()
    request_id = adapter.submit(Request(PROMPT, 12, return_log_probs=True))
    wait_for(adapter, lambda stats: stats.finished["length"] == 1)
    (output,) = adapter.poll(PATIENCE_S)
    assert output.id == request_id
    assert len(output.token_ids) == len(output.log_probs) == 12
    assert adapter.poll(0.0) == []


def test_what_an_engine_cannot_return_is_refused_before_any_work(open_double: Any) -> None:
    adapter = open_double()
    with pytest.raises(InvalidArgument, match=r"prompt_log_probs is 1, .* without --gather_context_logits"):
        adapter.submit(Request(PROMPT, 4, return_prompt_log_probs=True))
    with pytest.raises(InvalidArgument, match="top_log_probs is 2, TensorRT-LLM engines support only 0"):
        adapter.submit(Request(PROMPT, 4, return_log_probs=True, top_log_probs=2))
    with pytest.raises(InvalidArgument, match="the prompt has 401 tokens, the limit is 400"):
        adapter.submit(Request([1] * 401, 4))
    with pytest.raises(InvalidArgument, match="max_tokens is 504, the limit for a prompt of 9 tokens is 503"):
        adapter.submit(Request(PROMPT, 504))
    assert adapter.stats().queued == 0


def test_a_request_that_only_the_executor_refuses_gets_its_reason_without_paths(open_double: Any) -> None:
    adapter = open_double()
    output = final_output(adapter, adapter.submit(Request(PROMPT, 4, end_id=1000)))
    assert output.finish_reason is FinishReason.ERROR
    assert isinstance(output.error, InvalidArgument)
    assert str(output.error) == (
        "the engine refused the request: EndId (1000) is not within acceptable range [-1, 160)."
    )


def test_counters_and_blocks_follow_the_requests(open_double: Any, collect: Any) -> None:
    adapter = open_double()
    running = adapter.submit(LONG)
    stats = wait_for(adapter, lambda stats: stats.active == 1 and stats.kv_blocks_total)
    assert stats.kv_blocks_free < stats.kv_blocks_total
    adapter.cancel(running)
    final_output(adapter, running)
    generate(adapter, collect)
    stats = wait_for(adapter, lambda stats: stats.finished["length"] == 1)
    assert (stats.active, stats.queued) == (0, 0)
    assert stats.kv_blocks_free == stats.kv_blocks_total
    assert stats.output_tokens >= 12
    assert stats.prompt_tokens == 40 + len(PROMPT)
    assert stats.steps > 0


def test_a_request_tells_once_how_long_it_waited(open_double: Any, collect: Any) -> None:
    adapter = open_double(max_batch_size=1)
    ids = [adapter.submit(Request(PROMPT, 60, streaming=streaming)) for streaming in (True, True, False)]
    found = collect(adapter, *ids)
    waited = [[output.queued_s for output in found[i].outputs if output.queued_s is not None] for i in ids]
    assert [len(times) for times in waited] == [1, 1, 1]
    assert 0.0 <= waited[0][0] < waited[1][0] < waited[2][0]


def test_the_model_behind_the_double_is_the_reference(open_double: Any, collect: Any, model: MixtralModel) -> None:
    """So that equality with the PyTorch engine means something: the tokens come from the weights."""
    tokens = list(PROMPT)
    for _ in range(12):
        tokens.append(int(model.forward_logits(tokens)[-1].argmax()))
    assert generate(open_double(), collect).token_ids == tokens[len(PROMPT) :]
