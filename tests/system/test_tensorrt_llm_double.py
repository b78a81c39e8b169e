"""The whole server with the TensorRT-LLM adapter on the strict double of the library's bindings: real Triton, real
ensemble, real adapter; only the library is replaced. It gives what the server with the PyTorch engine gives.

This is no run of TensorRT-LLM.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from system_fixtures import ROOT, triton_server
from system_server import Answer, Server, idle

from mixtral_runtime.manifest import Manifest
from mixtral_serving.server.installation import unsupported_platform

PROMPT = "Once upon a time"
QUEUE, BATCH = 16, 4
FOREVER: dict[str, Any] = {"max_tokens": 1900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def double(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, on the same weights with a manifest that says tensorrt-llm."""
    if reason := unsupported_platform():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("double")
    directory = Path(shutil.copytree(engine_dir, folder / "engine", copy_function=os.link))
    (directory / "manifest.json").unlink()  # the link, not the engine's own
    manifest = Manifest.load(engine_dir)
    replace(
        manifest,
        runtime="tensorrt-llm",
        versions=manifest.versions | {"tensorrt-llm": "1.2.1"},
        gpu="sm80",
        returns=replace(manifest.returns, prompt_log_probs=False),
    ).write(directory)
    config = folder / "serve.toml"
    config.write_text(
        f"[tensorrt_llm]\nmax_batch_size = {BATCH}\nmax_queue_size = {QUEUE}\ncuda_graph_mode = true\n"
        "cuda_graph_cache_size = 4\n[engine]\ndrain_s = 1\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTRAL_TRTLLM_BINDINGS", "trtllm_double")
        patch.setenv("MIXTRAL_PLUGIN_PATH", str(ROOT / "tests" / "support"))
        with triton_server(directory, folder, config) as server:
            yield server


def observed(answer: Answer) -> dict[str, Any]:
    """What a client can tell, but for how the text was cut into responses."""
    return {"error": answer.error, "text": answer.text} | {
        name: answer.values(name) for name in ("finish_reason", "output_ids", "output_log_probs", "num_input_tokens")
    }


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 40},
    "greedy to the end of the story": {"max_tokens": 200},
    "seeded": {"max_tokens": 40, "temperature": 0.9, "seed": 7},
    "top_k and top_p": {"max_tokens": 40, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 2**63},
    "min_p and repetition penalty": {
        "max_tokens": 40, "temperature": 1.2, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 3
    },
    "bad words, biases and a least length": {
        "max_tokens": 40, "min_tokens": 30, "bad_words": ["boy", "girl"], "logit_bias_ids": [300, 400],
        "logit_bias_values": [2.0, -100.0], "presence_penalty": 0.5, "frequency_penalty": 0.25,
    },
    "ignoring the end": {"max_tokens": 120, "ignore_eos": True},
    "log probabilities": {"max_tokens": 20, "return_log_probs": True, "return_output_ids": True},
    "seeded log probabilities": {
        "max_tokens": 20, "temperature": 1.0, "seed": 11, "return_log_probs": True, "return_output_ids": True
    },
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_answer_as_with_the_pytorch_runtime(double: Server, server: Server, name: str, stream: bool) -> None:
    inputs = {"text_input": PROMPT, "stream": stream, **REQUESTS[name]}
    found, expected = double.ask(**inputs), server.ask(**inputs)
    assert expected.error is None
    assert expected.text
    assert observed(found) == observed(expected)


def test_a_drawn_seed_is_told_and_repeats_the_text(double: Server) -> None:
    first = double.ask(text_input=PROMPT, max_tokens=30, temperature=1.5)
    (seed,) = first.values("used_seed")
    assert double.ask(text_input=PROMPT, max_tokens=30, temperature=1.5, seed=seed).text == first.text


def test_it_streams(double: Server) -> None:
    answer = double.ask(text_input=PROMPT, max_tokens=60, ignore_eos=True, stream=True)
    assert len([text for text in answer.texts if text]) > 1


def test_sixteen_mixed_requests_at_once(double: Server, server: Server) -> None:
    prompts = [PROMPT, "The cat", "A dog ran", "One day, Lily"]
    requests: list[dict[str, Any]] = [
        {"text_input": prompts[i % 4], "max_tokens": 10 + 3 * i, "stream": i % 3 > 0}
        | ({"temperature": 1.0, "seed": i} if i % 2 else {})
        for i in range(16)
    ]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda inputs: double.ask(**inputs), requests))
        expected = list(pool.map(lambda inputs: server.ask(**inputs), requests))
    assert [observed(answer) for answer in found] == [observed(answer) for answer in expected]
    assert idle(double.wait_for_stats(idle))


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_across_tokens(double: Server, server: Server, stream: bool) -> None:
    whole = server.ask(text_input=PROMPT, max_tokens=40, stream=True).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 7]  # cuts through words, so through tokens
    inputs: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 40, "stream": stream, "stop_words": [stop]}
    found, expected = double.ask(**inputs), server.ask(**inputs)
    assert found.text == expected.text == whole[: whole.index(stop)]
    assert found.values("finish_reason") == [b"stop"]
    double.wait_for_stats(idle)


def test_a_client_that_leaves_frees_its_place(double: Server) -> None:
    stream = double.open(text_input=PROMPT, **FOREVER)
    stream.next()
    assert double.wait_for_stats(lambda stats: stats["active"] == 1)["kv_blocks_free"] > 0
    cancelled = double.info()["stats"]["finished"]["cancelled"]
    stream.cancel()
    stats = double.wait_for_stats(idle)
    assert stats["finished"]["cancelled"] == cancelled + 1


def test_a_stop_request_ends_the_stream_of_its_id(double: Server) -> None:
    stream = double.open(text_input=PROMPT, request_id="mine", **FOREVER)
    stream.next()
    assert double.ask("tensorrt_llm", request_id="mine", stop=True, input_lengths=0, request_output_len=0).error is None
    assert stream.finish().values("finish_reason") == [b"cancelled"]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"max_tokens": 0}, "INVALID_ARGUMENT: max_tokens is 0, it must be at least 1"),
        ({"temperature": -1.0}, "INVALID_ARGUMENT: temperature is -1, it must be from 0 to 100"),
        ({"top_k": 1025}, "INVALID_ARGUMENT: top_k is 1025, it must be from 0 to 1024"),
        ({"max_tokens": 10**6}, "INVALID_ARGUMENT: max_tokens is 1000000, the limit"),
        ({"text_input": "cat " * 5000}, "INVALID_ARGUMENT: the prompt has"),
        (
            {"return_prompt_log_probs": True},
            "INVALID_ARGUMENT: return_prompt_log_probs is 1, this engine supports only 0",
        ),
        ({"top_log_probs": 2}, "INVALID_ARGUMENT: top_log_probs is 2, TensorRT-LLM engines support only 0"),
        ({"timeout_ms": 0}, "INVALID_ARGUMENT: timeout_ms is 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(double: Server, inputs: dict[str, Any], complaint: str) -> None:
    whole: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 5} | inputs
    answer = double.ask(**whole)
    assert answer.error is not None
    assert complaint in answer.error
    assert "/" not in answer.error.partition(complaint)[2], "no path of the server"


def test_a_timeout_ends_a_request_with_what_it_has(double: Server) -> None:
    answer = double.ask(text_input=PROMPT, max_tokens=500, ignore_eos=True, stream=False, timeout_ms=150)
    assert answer.error is None
    assert answer.values("finish_reason") in ([b"timeout"], [b"length"])  # length on a very fast machine


def test_a_full_queue_refuses_at_once_and_the_others_go_on(double: Server) -> None:
    streams = [double.open(text_input=PROMPT, **FOREVER) for _ in range(BATCH)]
    double.wait_for_stats(lambda stats: stats["active"] == BATCH)
    streams += [double.open(text_input=PROMPT, **FOREVER) for _ in range(QUEUE)]
    double.wait_for_stats(lambda stats: stats["streams"] == BATCH + QUEUE)
    refused = double.ask(text_input=PROMPT, max_tokens=5)
    for stream in streams:
        stream.cancel()
    assert refused.error is not None
    assert f"UNAVAILABLE: the queue is full, the limit is {QUEUE} waiting requests" in refused.error
    double.wait_for_stats(idle)
    assert double.ask(text_input=PROMPT, max_tokens=5).error is None


def test_engine_info_says_what_runs(double: Server) -> None:
    info = double.info()
    assert info["manifest"]["runtime"] == "tensorrt-llm"
    assert info["stats"]["max_batch_size"] == BATCH
    in_force = info["manifest"]["limits"] | {"max_batch_size": BATCH, "max_queue_size": QUEUE}
    assert info["limits"].items() >= in_force.items()
