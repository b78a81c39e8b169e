"""What the adapter hands to TensorRT-LLM's bindings and how it reads what comes back: each trap of that API once.

The objects are the strict ones made from the recorded signatures, so that a name, a kind or a type that is not
recorded fails here already."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import trtllm_double
from strict_bindings import set_values

from mixtral_runtime.engine import FinishReason, Request, SamplingParams
from mixtral_runtime.errors import Internal, InvalidArgument, Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.tensorrt_llm.conversion import (
    bindings_request,
    check_returnable,
    enqueue_error,
    log_probs_of,
    read_response,
    request_error,
    sampling_config,
)
from mixtral_runtime.tensorrt_llm.executor_config import executor_config
from mixtral_runtime.tensorrt_llm.settings import TensorRtLlmSettings

trtllm: Any = trtllm_double
Reason = trtllm.FinishReason
PLAIN = Request([1, 2, 3], 8)


@pytest.fixture
def manifest(trtllm_engine_dir: Path) -> Manifest:
    return Manifest.load(trtllm_engine_dir)


def given(thing: Any) -> dict[str, Any]:
    """The properties of a bindings object that are not None."""
    return {name: value for name, value in thing._values.items() if value is not None}


def converted(request: Request) -> Any:
    return bindings_request(trtllm, request, vocab_size=160)


# Requests


def test_a_plain_request_names_end_token_and_output_and_nothing_else() -> None:
    request = converted(replace(PLAIN, end_id=2))
    assert request.input_token_ids == [1, 2, 3]
    assert request.max_tokens == 8
    assert request.streaming is True
    assert request.end_id == 2
    assert request._bound["priority"] == 0.5
    for name in (
        "stop_words", "bad_words", "embedding_bias", "allotted_time_ms", "cache_salt_id", "client_id", "pad_id",
        "lora_config",
    ):  # fmt: skip
        assert getattr(request, name) is None, name


def test_the_prompt_never_comes_back_in_an_output() -> None:
    for streaming in (True, False):
        assert converted(replace(PLAIN, streaming=streaming)).output_config.exclude_input_from_output


def test_without_an_end_token_one_is_named_that_never_comes() -> None:
    assert converted(PLAIN).end_id == -1


def test_stop_sequences_are_lists_of_token_lists() -> None:
    assert converted(replace(PLAIN, stop_sequences=[[5], [6, 7]])).stop_words == [[5], [6, 7]]


def test_bad_sequences_are_lists_of_token_lists() -> None:
    assert converted(replace(PLAIN, bad_sequences=[[5], [6, 7]])).bad_words == [[5], [6, 7]]


def test_biases_are_one_tensor_over_the_vocabulary() -> None:
    bias = converted(replace(PLAIN, logit_bias={5: -100.0, 159: 2.5})).embedding_bias
    assert (bias.shape, bias.dtype) == ((160,), torch.float32)
    assert {i: value for i, value in enumerate(bias.tolist()) if value} == {5: -100.0, 159: 2.5}


def test_min_tokens_are_a_sampling_parameter() -> None:
    assert converted(replace(PLAIN, min_tokens=3)).sampling_config.min_tokens == 3
    assert converted(PLAIN).sampling_config.min_tokens is None


def test_the_allotted_time_is_a_timedelta_whatever_its_name_says() -> None:
    assert converted(replace(PLAIN, timeout_s=1.5)).allotted_time_ms == timedelta(milliseconds=1500)


def test_priority_is_passed() -> None:
    assert converted(replace(PLAIN, priority=0.9))._bound["priority"] == 0.9


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(seed=4), {"top_k": 1, "seed": 4}),
        (SamplingParams(temperature=0.7, top_k=1), {"top_k": 1, "seed": 0}),
        # Temperature alone would be greedy there, so top_p 1, which keeps all, is said.
        (SamplingParams(temperature=0.7, seed=4), {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "seed": 4}),
        (SamplingParams(1.0, top_k=1024), {"temperature": 1.0, "top_k": 1024, "top_p": 1.0, "seed": 0}),
        (SamplingParams(1.0, top_p=0.5), {"temperature": 1.0, "top_k": 0, "top_p": 0.5, "seed": 0}),
        (
            SamplingParams(1.0, min_p=0.1, repetition_penalty=1.2, seed=2**64 - 1),
            {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 2**64 - 1},
        ),
        (
            SamplingParams(presence_penalty=0.5, frequency_penalty=-2.0),
            {"top_k": 1, "presence_penalty": 0.5, "frequency_penalty": -2.0, "seed": 0},
        ),
        (SamplingParams(repetition_penalty=1.2), {"top_k": 1, "repetition_penalty": 1.2, "seed": 0}),
    ],
)
def test_sampling(sampling: SamplingParams, expected: dict[str, Any]) -> None:
    assert given(sampling_config(trtllm, sampling)) == {"beam_width": 1} | expected


def test_log_probabilities_come_only_with_a_sampling_parameter_so_there_always_is_one() -> None:
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0)):
        config = sampling_config(trtllm, sampling)
        assert config.top_k or config.top_p


def test_top_k_beyond_the_librarys_range_is_refused_before() -> None:
    with pytest.raises(InvalidArgument, match="top_k is 1025, it must be from 0 to 1024"):
        SamplingParams(1.0, top_k=1025).validate()


def test_prompt_log_probs_need_an_engine_that_gathers_context_logits(manifest: Manifest) -> None:
    request = replace(PLAIN, return_prompt_log_probs=True)
    with pytest.raises(InvalidArgument, match="--gather_context_logits"):
        check_returnable(request, manifest.returns)
    gathers = replace(manifest.returns, prompt_log_probs=True)
    check_returnable(request, gathers)
    assert converted(request).output_config.return_context_logits is True
    config = executor_config(trtllm, replace(manifest, returns=gathers), TensorRtLlmSettings())
    assert config.kv_cache_config.enable_block_reuse is False  # reused blocks would have no logits


# Responses


def response(**result: Any) -> Any:
    values: dict[str, Any] = {
        "is_final": False,
        "output_token_ids": [[7]],
        "finish_reasons": [Reason.NOT_FINISHED],
    }
    return trtllm.Response(5, set_values(trtllm.Result(), **values | result))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.END_ID, FinishReason.STOP),
        (Reason.STOP_WORDS, FinishReason.STOP),
        (Reason.LENGTH, FinishReason.LENGTH),
        (Reason.TIMED_OUT, FinishReason.TIMEOUT),
        (Reason.CANCELLED, FinishReason.CANCELLED),
    ],
)
def test_finish_reasons(reason: Any, expected: FinishReason) -> None:
    piece = read_response(trtllm, response(is_final=True, finish_reasons=[reason]), PLAIN, 0)
    assert (piece.finish_reason, piece.error) == (expected, None)


def test_an_end_without_a_reason_is_an_error() -> None:
    piece = read_response(trtllm, response(is_final=True), PLAIN, 0)
    assert piece.finish_reason is FinishReason.ERROR
    assert isinstance(piece.error, Internal)


def test_a_response_before_the_end_has_no_reason() -> None:
    assert read_response(trtllm, response(), PLAIN, 0).finish_reason is None


def test_log_probs_repeat_those_of_earlier_tokens_and_only_the_new_are_taken() -> None:
    request = replace(PLAIN, return_log_probs=True)
    so_far = response(output_token_ids=[[8, 9]], log_probs=[[-1.0, -2.0, -3.0, -4.0]])
    assert read_response(trtllm, so_far, request, 2).log_probs == [-3.0, -4.0]
    new_only = response(output_token_ids=[[8, 9]], log_probs=[[-3.0, -4.0]])
    assert read_response(trtllm, new_only, request, 2).log_probs == [-3.0, -4.0]


def test_log_probs_that_a_cancel_lost_are_none_not_wrong() -> None:
    request = replace(PLAIN, return_log_probs=True)
    lost = response(output_token_ids=[[8, 9]], log_probs=[[-1.0]], is_final=True, finish_reasons=[Reason.CANCELLED])
    assert read_response(trtllm, lost, request, 2).log_probs is None
    assert read_response(trtllm, response(log_probs=[[-1.0]]), PLAIN, 0).log_probs is None  # not asked for


def test_an_end_token_in_the_output_is_cut_off() -> None:
    request = replace(PLAIN, end_id=9, return_log_probs=True)
    ended = response(output_token_ids=[[8, 9]], log_probs=[[-1.0, -2.0]], is_final=True, finish_reasons=[Reason.END_ID])
    piece = read_response(trtllm, ended, request, 0)
    assert (piece.token_ids, piece.log_probs) == ([8], [-1.0])
    cut_short = response(output_token_ids=[[8, 9]], is_final=True, finish_reasons=[Reason.LENGTH])
    assert read_response(trtllm, cut_short, replace(request, return_log_probs=False), 0).token_ids == [8, 9]


def test_an_error_response_has_no_result_to_ask_for() -> None:
    failed = trtllm.Response(5, "Encountered an error in forwardAsync function: CUDA out of memory (/src/a.cpp:12)")
    with pytest.raises(RuntimeError):
        _ = failed.result
    piece = read_response(trtllm, failed, PLAIN, 0)
    assert piece.finish_reason is FinishReason.ERROR
    assert str(piece.error) == "the engine failed to compute this request"


def test_context_logits_become_log_probs_of_the_prompt() -> None:
    logits = torch.randn(3, 10, dtype=torch.float16)
    request = Request([4, 5, 6], 8, return_prompt_log_probs=True)
    piece = read_response(trtllm, response(context_logits=logits), request, 0)
    expected = logits.float().log_softmax(-1)
    assert piece.prompt_log_probs == [expected[0, 5].item(), expected[1, 6].item()]
    assert read_response(trtllm, response(context_logits=logits), request, 1).prompt_log_probs is None
    assert log_probs_of(logits, [4]) == []


STACK = " (/src/tensorrt_llm/cpp/tensorrt_llm/executor/executorImpl.cpp:1234)\n1  0x7f10 in libtensorrt_llm.so"


def test_failures_lose_paths_and_stacks() -> None:
    refused = request_error(
        "Encountered an error when fetching new request: [TensorRT-LLM][ERROR] Assertion failed: "
        f"Requested beam width 4 is too large.{STACK}"
    )
    assert isinstance(refused, InvalidArgument)
    assert str(refused) == "the engine refused the request: Requested beam width 4 is too large."
    raised = enqueue_error(RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: no such processor{STACK}"), 9)
    assert isinstance(raised, InvalidArgument)
    assert str(raised) == "the engine refused the request: no such processor"
    full = enqueue_error(RuntimeError(f"[TensorRT-LLM][ERROR] Maximum queue size of 9 has been reached{STACK}"), 9)
    assert isinstance(full, Unavailable)
    assert str(full) == "the queue is full, the limit is 9 waiting requests"
    assert isinstance(enqueue_error(TypeError("incompatible function arguments"), 9), Internal)


def test_the_running_time_needs_figures_of_the_recorded_kind() -> None:
    """Their types are not recorded: what is not a timedelta is not taken for one."""

    def timed(first_token: Any, last_token: Any, **result: Any) -> float | None:
        timing = set_values(
            trtllm.TimingMetrics(),
            first_scheduled_time=timedelta(seconds=10),
            first_token_time=first_token,
            last_token_time=last_token,
        )
        metrics = set_values(trtllm.RequestPerfMetrics(), timing_metrics=timing)
        return read_response(trtllm, response(request_perf_metrics=metrics, **result), PLAIN, 0).running_s

    eleven, fifteen = timedelta(seconds=11), timedelta(seconds=15)
    assert timed(eleven, timedelta(0)) == 1.0
    assert timed(eleven, fifteen, is_final=True, finish_reasons=[Reason.LENGTH]) == 5.0
    assert timed(eleven, fifteen, output_token_ids=[[]]) is None
    assert timed(11.0, fifteen) is timed(None, fifteen) is None
    assert read_response(trtllm, response(), PLAIN, 0).running_s is None
