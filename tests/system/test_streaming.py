"""Tokens streamed through the real server: gRPC, HTTP, unary, the engine model alone."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from system_server import Answer, Server, idle, infer_input

from mixtral_serving.prompt import PromptBuilder

STORY = "Once upon a time"
CHAT = json.dumps([{"role": "user", "content": "My name is Zorin. What is my name?"}])


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: bytes = answer.read()
        return data


@pytest.mark.parametrize("prompt", [{"text_input": STORY}, {"messages": CHAT}])
def test_streamed_pieces_join_to_the_text_of_a_plain_call(server: Server, prompt: dict[str, str]) -> None:
    streamed = server.ask(**prompt, max_tokens=40, stream=True)
    plain = server.ask(**prompt, max_tokens=40)
    assert streamed.error is plain.error is None
    assert sum(bool(text) for text in streamed.texts) > 2
    assert len([text for text in plain.texts if text]) == 1
    assert streamed.text == plain.text


def test_text_continues_the_prompt_and_chat_answers_begin_without_a_space(server: Server) -> None:
    assert server.ask(text_input=STORY, max_tokens=3).text.startswith((" ", ","))
    assert not server.ask(messages=CHAT, max_tokens=3).text.startswith(" ")


def test_a_request_of_nvidias_inputs_alone(server: Server) -> None:
    """Every name and type is from NVIDIA's ensemble, and so is every output but finish_reason."""
    answer = server.ask(
        text_input=STORY,
        max_tokens=12,
        bad_words=[""],
        stop_words=["zzz"],
        end_id=2,
        pad_id=2,
        top_k=1,
        top_p=0.0,
        temperature=1.0,
        repetition_penalty=1.0,
        beam_width=1,
        seed=0,
        stream=True,
        return_log_probs=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
        exclude_input_in_output=True,
    )
    assert answer.error is None
    assert answer.text == server.ask(text_input=STORY, max_tokens=12).text
    assert sum(answer.values("num_output_tokens")) == 12
    assert len(answer.values("output_log_probs")) == 12
    assert answer.values("cum_log_probs")[-1] == pytest.approx(sum(answer.values("output_log_probs")), abs=1e-4)
    assert answer.values("finish_reason") == [b"length"]


def test_the_prompt_comes_back_only_when_asked_for(server: Server) -> None:
    without = server.ask(text_input=STORY, max_tokens=8).text
    assert server.ask(text_input=STORY, max_tokens=8, exclude_input_in_output=False).text == STORY + without


def test_token_ids_in_and_out(server: Server, demo_model: Path) -> None:
    builder = PromptBuilder.load(demo_model)
    answer = server.ask(input_ids=builder.from_text(STORY).ids, max_tokens=8, return_output_ids=True, stream=True)
    ids = answer.values("output_ids")
    assert len(ids) == 8
    assert (
        builder.vocabulary.decode_bytes(ids).decode() == answer.text == server.ask(text_input=STORY, max_tokens=8).text
    )


def test_log_probabilities_of_prompt_and_alternatives(server: Server) -> None:
    ask: dict[str, Any] = {"return_prompt_log_probs": True, "top_log_probs": 3, "return_output_ids": True}
    answer = server.ask(text_input=STORY, max_tokens=4, stream=True, return_num_input_tokens=True, **ask)
    prompt_tokens = answer.values("num_input_tokens")[0]
    assert len(answer.values("prompt_log_probs")) == prompt_tokens - 1
    assert max(answer.values("prompt_log_probs")) <= 0
    top_ids = np.array(answer.values("top_token_ids")).reshape(4, 3)
    top = np.array(answer.values("top_token_log_probs")).reshape(4, 3)
    assert top_ids[:, 0].tolist() == answer.values("output_ids")  # greedy takes the best
    assert top[:, 0].tolist() == pytest.approx(answer.values("output_log_probs"))
    assert (np.diff(top, axis=1) <= 0).all()


def test_http_generate_and_generate_stream(server: Server) -> None:
    body = {"text_input": STORY, "max_tokens": 10}
    plain = json.loads(post(f"{server.http_url}/v2/models/ensemble/generate", body))
    events = post(f"{server.http_url}/v2/models/ensemble/generate_stream", body | {"stream": True}).decode()
    pieces = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    assert plain["finish_reason"] == "length"
    assert len(pieces) > 2
    assert "".join(piece["text_output"] for piece in pieces) == plain["text_output"]


def test_unary_calls(server: Server) -> None:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        inputs = [infer_input("text_input", STORY), infer_input("max_tokens", 10)]
        result = client.infer("unary", inputs, client_timeout=60)
        assert result.as_numpy("text_output")[0].decode() == server.ask(text_input=STORY, max_tokens=10).text
        bad = [infer_input("text_input", STORY), infer_input("max_tokens", 0)]
        with pytest.raises(grpc.InferenceServerException, match="INVALID_ARGUMENT: max_tokens is 0") as error:
            client.infer("unary", bad, client_timeout=60)
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    plain = json.loads(post(f"{server.http_url}/v2/models/unary/generate", {"text_input": STORY, "max_tokens": 10}))
    assert plain["text_output"] == server.ask(text_input=STORY, max_tokens=10).text


def test_a_unary_call_for_outputs_that_the_answer_does_not_have_gives_none(server: Server) -> None:
    inputs = [infer_input("text_input", STORY), infer_input("max_tokens", 2)]
    with grpc.InferenceServerClient(server.grpc_url) as client:
        wanted = [grpc.InferRequestedOutput("prompt_log_probs")]
        answer = client.infer("unary", inputs, outputs=wanted, client_timeout=60)
    assert list(answer.get_response().outputs) == []


def test_sampling_with_a_seed_repeats_and_without_varies(server: Server) -> None:
    def sample(**more: Any) -> str:
        return server.ask(text_input=STORY, max_tokens=30, temperature=1.5, **more).text

    assert sample(seed=7) == sample(seed=7)
    assert len({sample() for _ in range(4)}) > 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_drawn_seed_is_told_and_repeats_the_text(server: Server, stream: bool) -> None:
    def sample(**more: Any) -> Answer:
        return server.ask(text_input=STORY, max_tokens=30, stream=stream, **more)

    first = sample(temperature=1.5)
    (seed,) = first.values("used_seed")
    again = sample(temperature=1.5, seed=seed)
    assert (again.text, again.values("used_seed")) == (first.text, [seed])
    assert sample().values("used_seed") == []  # greedy: there is none


def test_a_requests_text_does_not_depend_on_its_company(server: Server) -> None:
    prompts = [f"{STORY} {n}" * (n % 5 + 1) for n in range(16)]
    alone = [server.ask(text_input=prompt, max_tokens=24).text for prompt in prompts]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda prompt: server.ask(text_input=prompt, max_tokens=24, stream=True), prompts))
    assert [answer.text for answer in together] == alone


def test_stop_strings_cut_the_text_and_stop_the_engine(server: Server) -> None:
    free = server.ask(text_input=STORY, max_tokens=60, ignore_eos=True).text
    stop = free[len(free) // 2 : len(free) // 2 + 4]
    for stream in (True, False):
        answer = server.ask(
            text_input=STORY, max_tokens=1000, ignore_eos=True, stop_words=[stop], stream=stream,
            return_num_output_tokens=True,
        )  # fmt: skip
        assert answer.text == free[: free.index(stop)]
        assert answer.values("finish_reason") == [b"stop"]
        assert sum(answer.values("num_output_tokens")) < 60
    server.wait_for_stats(idle)


def test_the_engine_model_alone_speaks_nvidias_tensors(server: Server, demo_model: Path) -> None:
    ids = PromptBuilder.load(demo_model).from_text(STORY).ids
    answer = server.ask(
        model="tensorrt_llm", input_ids=ids, input_lengths=len(ids), request_output_len=6, streaming=True, beam_width=1
    )
    assert answer.error is None
    assert len(answer.values("output_ids")) == sum(answer.values("sequence_length")) == 6
    assert set(answer.values("STREAM_ID")) != {0}


def test_a_stream_interval_gives_the_same_text_in_fewer_responses(server: Server) -> None:
    every = server.ask(text_input=STORY, max_tokens=40, stream=True, return_num_output_tokens=True)
    fifth = server.ask(text_input=STORY, max_tokens=40, stream=True, return_num_output_tokens=True, stream_interval=5)
    assert fifth.text == every.text
    first, *others, last = fifth.values("num_output_tokens")
    assert all(tokens >= 5 for tokens in others), "the first does not wait, the last takes what is left"
    assert first + sum(others) + last == 40
    assert len(fifth.responses) <= 1 + -(-39 // 5) + 1 < len(every.responses)
