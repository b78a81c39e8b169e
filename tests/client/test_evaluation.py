"""`mixtral eval` against a server whose log probabilities are known: figures, failures, and interruption."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted_server import ScriptedServer, Step, answer, failure, hang

from mixtral_client import Client
from mixtral_client.cli import main

WAIT_S = 30.0
TEXTS = ["abc", "", "de", "fghij"]  # a token for each character after BOS
LIMITS = {"max_batch_size": 3, "max_input_len": 100, "max_seq_len": 101}
ROOMY = {"manifest": {}, "limits": {"max_input_len": 1000, "max_seq_len": 2000}}


def log_prob(token: int) -> float:
    return -(token % 8) / 8 - 0.5


def scored(inputs: dict[str, Any]) -> list[Step]:
    """What the server answers to one request for prompt log probabilities."""
    assert inputs["return_prompt_log_probs"] == [[True]]
    (ids,) = inputs["input_ids"]
    return [
        answer("", prompt_log_probs=[[log_prob(token) for token in ids[1:]]]),
        answer("x", finish="length", num_input_tokens=[[len(ids)]], num_output_tokens=[[1]], final=True),
    ]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A is right in three of five."""
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"q{n}", "choices": ["w", "x", "y", "z"], "answer": n % 2, "subject": "s"}) + "\n"
            for n in range(5)
        )
    )
    return path


@pytest.fixture
def server(server: ScriptedServer) -> ScriptedServer:
    server.info = {"manifest": {"precision": "int8", "runtime": "pytorch"}, "limits": LIMITS}
    server.play_by(scored)
    return server


def mixtral_eval(server: ScriptedServer, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments), "--url", server.url, "--json"])


def expected_perplexity(*texts: str) -> float:
    found = [log_prob(token) for text in texts for token in text.encode()]
    return math.exp(-sum(found) / len(found))


def test_perplexity_of_texts(server: ScriptedServer, texts: Path) -> None:
    result = mixtral_eval(server, "perplexity", texts)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "url": server.url,
        "runtime": "pytorch",
        "precision": "int8",
        "partial": False,
        "requests": 3,
        "done": 3,
        "errors": {},
        "perplexity": {
            "file": "texts.jsonl",
            "perplexity": pytest.approx(expected_perplexity(*TEXTS), rel=1e-6),
            "texts": 4,
            "tokens": 10,
            "context": 100,
            "stride": 100,
        },
    }
    assert "the context is 100 tokens, the server's longest prompt" in result.stderr


def test_windows_with_and_without_overlap(server: ScriptedServer, texts: Path) -> None:
    apart = json.loads(mixtral_eval(server, "perplexity", texts, "--context", "3").stdout)
    assert (apart["requests"], apart["perplexity"]["tokens"]) == (4, 8)
    overlapping = json.loads(mixtral_eval(server, "perplexity", texts, "--context", "3", "--stride", "1").stdout)
    assert overlapping["perplexity"]["tokens"] == 10
    assert overlapping["perplexity"]["perplexity"] == pytest.approx(expected_perplexity(*TEXTS), rel=1e-6)


def test_accuracy_on_multiple_choice(server: ScriptedServer, questions: Path) -> None:
    server.info = ROOMY
    result = mixtral_eval(server, "multiple-choice", questions)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["requests"] == found["done"] == 5 * 4
    accuracy = found["multiple_choice"]
    subject = accuracy.pop("subjects")["s"]
    # A to D are the tokens 65 to 68, so A is the likeliest every time.
    assert accuracy == {
        "file": "questions.jsonl",
        "accuracy": 0.6,
        "standard_error": pytest.approx(math.sqrt(0.6 * 0.4 / 5)),
        "questions": 5,
        "shots": 0,
        "shortened": 0,
    }
    assert subject == {"accuracy": 0.6, "questions": 5}


def test_examples_that_find_no_room_are_left_out(server: ScriptedServer, questions: Path) -> None:
    server.info = {"limits": LIMITS | {"max_input_len": 160, "max_seq_len": 200}}
    result = mixtral_eval(server, "multiple-choice", questions, "--dev", questions, "--shots", "3")
    assert result.exit_code == 0, result.stderr
    accuracy = json.loads(result.stdout)["multiple_choice"]
    assert (accuracy["shots"], accuracy["shortened"], accuracy["questions"]) == (3, 5, 5)
    server.info = {"limits": LIMITS | {"max_input_len": 50}}
    result = mixtral_eval(server, "multiple-choice", questions)
    assert result.exit_code == 1
    assert "tokens without any example, the server's longest prompt is 50: 'q0'" in result.stderr


def test_requests_that_fail_are_counted_and_left_out(server: ScriptedServer, texts: Path) -> None:
    def script(inputs: dict[str, Any]) -> list[Step]:
        poisoned = inputs["input_ids"][0] == [1, *b"de"]
        return [failure("in ensemble 'ensemble', INTERNAL: the engine failed")] if poisoned else scored(inputs)

    server.play_by(script)
    result = mixtral_eval(server, "perplexity", texts)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["partial"], found["requests"], found["done"], found["errors"]) == (True, 3, 2, {"INTERNAL": 1})
    assert found["perplexity"]["tokens"] == 8
    assert found["perplexity"]["perplexity"] == pytest.approx(expected_perplexity("abc", "fghij"), rel=1e-6)
    assert "1 requests failed, the first: the engine failed" in result.stderr


def test_when_all_fail_there_is_no_figure(server: ScriptedServer, texts: Path) -> None:
    server.play(failure("INTERNAL: no"))
    result = mixtral_eval(server, "perplexity", texts)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing was measured, 3 requests failed: no" in result.stderr


def test_a_question_without_all_its_answers_is_left_out(server: ScriptedServer, questions: Path) -> None:
    def script(inputs: dict[str, Any]) -> list[Step]:
        ids = inputs["input_ids"][0]
        poisoned = b"q0\n" in bytes(ids[1:]) and ids[-1] == ord("C")
        return [failure("INTERNAL: no")] if poisoned else scored(inputs)

    server.info = ROOMY
    server.play_by(script)
    found = json.loads(mixtral_eval(server, "multiple-choice", questions).stdout)
    assert (found["done"], found["multiple_choice"]["questions"], found["multiple_choice"]["accuracy"]) == (19, 4, 0.5)


def test_a_full_queue_is_asked_again(server: ScriptedServer, texts: Path) -> None:
    refused: set[int] = set()

    def script(inputs: dict[str, Any]) -> list[Step]:
        length = len(inputs["input_ids"][0])
        if length not in refused:
            refused.add(length)
            return [failure("UNAVAILABLE: the queue is full: 2 requests wait, the limit is 2")]
        return scored(inputs)

    server.play_by(script)
    result = mixtral_eval(server, "perplexity", texts)
    assert (result.exit_code, json.loads(result.stdout)["done"]) == (0, 3)


def test_an_answer_with_another_number_of_log_probabilities_is_an_error(server: ScriptedServer, texts: Path) -> None:
    server.play(answer("x", finish="length", prompt_log_probs=[[-1.0]], final=True))
    result = mixtral_eval(server, "perplexity", texts, "--concurrency", "1")
    assert result.exit_code == 1
    assert "a prompt of 4 tokens came back with 1 log probabilities, it must be 3" in result.stderr


def test_an_engine_without_them_is_refused_at_once(server: ScriptedServer, texts: Path) -> None:
    server.info = {"manifest": {"returns": {"prompt_log_probs": False}}}
    result = mixtral_eval(server, "perplexity", texts)
    assert result.exit_code == 1
    assert "this server's engine returns no log probabilities of prompts" in result.stderr
    assert not any("input_ids" in str(request) for request in server.requests)


def test_no_server_is_one_line_and_exit_code_1(texts: Path) -> None:
    result = CliRunner().invoke(main, ["eval", "perplexity", str(texts), "--url", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot reach 127.0.0.1:9")


@pytest.mark.parametrize("ending", ["interrupted", "server lost"])
def test_what_was_measured_before_the_end_is_reported_as_partial(
    server: ScriptedServer, texts: Path, ending: str
) -> None:
    asked: list[int] = []

    def script(inputs: dict[str, Any]) -> list[Step]:
        asked.append(len(inputs["input_ids"][0]))
        return [hang()] if asked[-1] == 6 else scored(inputs)

    server.play_by(script)
    command = [sys.executable, "-m", "mixtral_client", "eval", "perplexity", str(texts), "--concurrency", "1"]
    process = subprocess.Popen(
        [*command, "--json", "--url", server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + WAIT_S
    while len(asked) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if ending == "interrupted":
        process.send_signal(signal.SIGINT)
    else:
        server.stop()
    stdout, stderr = process.communicate(timeout=WAIT_S)
    found = json.loads(stdout)
    assert (found["partial"], found["requests"], found["done"]) == (True, 3, 2)
    assert found["perplexity"]["perplexity"] == pytest.approx(expected_perplexity("abc", "de"), rel=1e-6)
    assert "partial: 2 of 3 requests are in the figures" in stderr
    if ending == "interrupted":
        assert (process.returncode, found["errors"]) == (130, {})
        assert server.cancelled.wait(WAIT_S), "the running request was not cancelled on the server"
    else:
        assert (process.returncode, found["errors"]) == (1, {"ServerUnreachable": 1})


def test_the_client_asks_the_server_for_token_ids(server: ScriptedServer) -> None:
    with Client(server.url) as client:
        assert client.tokenize("añ") == [1, *"añ".encode()]
        assert server.requests[0].model_name == "preprocessing"


def test_a_stride_above_the_context_is_refused(server: ScriptedServer, texts: Path) -> None:
    result = mixtral_eval(server, "perplexity", texts, "--context", "4", "--stride", "5")
    assert result.exit_code == 1
    assert "the stride is 5, it must be at most the context, which is 4" in result.stderr
