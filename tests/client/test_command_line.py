"""`mixtral stream` and `mixtral chat`: text on stdout, the rest on stderr, and the exit codes."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted_server import ScriptedServer, answer, failure, inputs_of, pause

from mixtral_client.cli import main

STORY = (
    answer("Once"),
    answer(" upon", output_ids=[[[5, 6]]]),
    answer(" a", finish="length", num_input_tokens=[[4]], num_output_tokens=[[3]], final=True),
)


def mixtral(*arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, env={"MIXTRAL_URL": None, **(env or {})})


def test_text_goes_to_stdout_and_usage_to_stderr(server: ScriptedServer) -> None:
    server.play(answer("Once"), pause(0.05), *STORY[1:])
    result = mixtral("stream", "Hi", "--url", server.url)
    assert result.exit_code == 0
    assert result.stdout == "Once upon a\n"
    assert result.stderr.count("\n") == 1
    for part in ("4 tokens in", "3 out", "s to first token", "finished: length"):
        assert part in result.stderr


def test_quiet_hides_the_usage_line(server: ScriptedServer) -> None:
    server.play(*STORY)
    assert mixtral("stream", "Hi", "--quiet", "--url", server.url).stderr == ""


def test_the_url_may_come_from_the_environment(server: ScriptedServer) -> None:
    server.play(*STORY)
    assert mixtral("stream", "Hi", env={"MIXTRAL_URL": server.url}).stdout == "Once upon a\n"


def test_no_stream_prints_the_same_text(server: ScriptedServer) -> None:
    server.play(*STORY)
    result = mixtral("stream", "Hi", "--no-stream", "--url", server.url)
    assert (result.exit_code, result.stdout) == (0, "Once upon a\n")
    # The wire is a stream all the same: a single response would be deaf to Ctrl-C until its end.
    assert inputs_of(server.requests[0])["stream"] == [[True]]


def test_json_is_one_object(server: ScriptedServer) -> None:
    server.play(*STORY)
    result = mixtral("stream", "Hi", "--json", "--token-ids", "--url", server.url)
    printed = json.loads(result.stdout)
    assert printed["text"] == "Once upon a"
    assert printed["finish_reason"] == "length"
    assert printed["token_ids"] == [5, 6]
    assert printed["request_id"] == server.requests[0].id
    assert printed["usage"]["num_input_tokens"] == 4
    assert set(printed["usage"]) == {
        "num_input_tokens",
        "num_output_tokens",
        "ttft_s",
        "tpot_s",
        "tokens_per_s",
        "total_s",
    }


def test_every_option_reaches_the_server(server: ScriptedServer) -> None:
    server.play(*STORY)
    arguments = {
        "--max-tokens": "9",
        "--temperature": "0.5",
        "--top-k": "7",
        "--top-p": "0.25",
        "--min-p": "0.125",
        "--repetition-penalty": "1.5",
        "--presence-penalty": "0.75",
        "--frequency-penalty": "-0.5",
        "--logit-bias": "5=-100",
        "--min-tokens": "3",
        "--bad-word": "owl",
        "--seed": "11",
        "--timeout": "1.5",
        "--stream-interval": "4",
        "--top-log-probs": "2",
    }
    flat = [part for option in arguments.items() for part in option]
    flags = ["--stop", "a", "--stop", "b", "--ignore-eos", "--echo", "--prompt-log-probs", "--json"]
    assert mixtral("stream", "Hi", *flat, *flags, "--url", server.url).exit_code == 0
    assert inputs_of(server.requests[0]) == {
        "text_input": [[b"Hi"]],
        "max_tokens": [[9]],
        "stop_words": [[b"a", b"b"]],
        "temperature": [[0.5]],
        "top_k": [[7]],
        "top_p": [[0.25]],
        "min_p": [[0.125]],
        "repetition_penalty": [[1.5]],
        "presence_penalty": [[0.75]],
        "frequency_penalty": [[-0.5]],
        "logit_bias_ids": [[5]],
        "logit_bias_values": [[-100.0]],
        "min_tokens": [[3]],
        "bad_words": [[b"owl"]],
        "seed": [[11]],
        "exclude_input_in_output": [[False]],
        "ignore_eos": [[True]],
        "timeout_ms": [[1500]],
        "stream_interval": [[4]],
        "return_log_probs": [[True]],  # implied by --top-log-probs
        "return_prompt_log_probs": [[True]],
        "top_log_probs": [[2]],
        "stream": [[True]],
        "return_num_input_tokens": [[True]],
        "return_num_output_tokens": [[True]],
    }


def test_a_dash_reads_the_prompt_from_stdin(server: ScriptedServer) -> None:
    server.play(*STORY)
    mixtral("stream", "-", "--url", server.url, stdin="Grüße\n")
    assert inputs_of(server.requests[0])["text_input"] == [["Grüße\n".encode()]]


def test_a_tokenised_prompt(server: ScriptedServer) -> None:
    server.play(*STORY)
    mixtral("stream", "--input-ids", "1,315,837", "--url", server.url)
    assert inputs_of(server.requests[0])["input_ids"] == [[1, 315, 837]]


def test_chat_sends_one_question_as_messages(server: ScriptedServer) -> None:
    server.play(*STORY)
    result = mixtral("chat", "Why?", "--url", server.url)
    assert result.stdout == "Once upon a\n"
    (messages,) = inputs_of(server.requests[0])["messages"]
    assert json.loads(messages[0]) == [{"role": "user", "content": "Why?"}]


def test_a_refusal_is_one_line_and_exit_code_1(server: ScriptedServer) -> None:
    server.play(failure("in ensemble 'ensemble', INVALID_ARGUMENT: max_tokens is 5000, the limit is 4096"))
    result = mixtral("stream", "Hi", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: max_tokens is 5000, the limit is 4096\n"


def test_no_server_is_one_line_and_exit_code_1() -> None:
    result = mixtral("stream", "Hi", "--url", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == "error: cannot reach 127.0.0.1:1: Connection refused\n"


def test_silence_is_exit_code_1(server: ScriptedServer) -> None:
    server.play(pause(3.0))
    result = mixtral("stream", "Hi", "--idle-timeout", "0.2", "--url", server.url)
    assert result.exit_code == 1
    assert "sent nothing for 0.2 s" in result.stderr


def test_a_generation_that_the_server_gave_up_is_exit_code_1(server: ScriptedServer) -> None:
    server.play(answer("half"), answer(finish="cancelled", final=True))
    result = mixtral("stream", "Hi", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert result.stderr.splitlines()[-1] == "error: the server ended the generation early: cancelled"


@pytest.mark.parametrize(
    "arguments",
    [
        ["stream"],
        ["stream", "Hi", "--input-ids", "1"],
        ["stream", "--input-ids", "1,x"],
        ["stream", "Hi", "--max-tokens", "0"],
        ["stream", "Hi", "--temperature", "-1"],
        ["stream", "Hi", "--top-p", "0"],
        ["stream", "Hi", "--top-p", "1.1"],
        ["stream", "Hi", "--top-k", "-1"],
        ["stream", "Hi", "--seed", "-1"],
        ["stream", "Hi", "--timeout", "0"],
        ["stream", "Hi", "--log-probs"],
        ["stream", "Hi", "--no-such-option"],
        ["chat"],  # stdin is no terminal here
        ["chat", "--json"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = mixtral(*arguments, stdin="")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("command", [[], ["stream"], ["chat"], ["status"]])
def test_each_command_has_help_with_an_example(command: list[str]) -> None:
    result = mixtral(*command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout


class TestStatus:
    INFO: dict[str, Any] = {  # noqa: RUF012 - read only
        "manifest": {
            "runtime": "pytorch",
            "gpu": "cpu",
            "precision": "int8",
            "dtype": "bfloat16",
            "model": {"architecture": "MixtralForCausalLM", "num_hidden_layers": 32, "num_experts": 8},
        },
        "limits": {"max_batch_size": 16, "max_input_len": 2048, "max_seq_len": 4096},
        "stats": {
            "active": 2,
            "queued": 1,
            "kv_blocks_total": 200,
            "kv_blocks_free": 150,
            "prompt_tokens": 10,
            "output_tokens": 20,
            "finished": {"stop": 3, "length": 4},
        },
    }

    def test_shows_what_the_server_is_and_does(self, server: ScriptedServer) -> None:
        server.info = self.INFO
        result = mixtral("status", "--url", server.url)
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [
            f"server   {server.url} is ready",
            "model    MixtralForCausalLM, 32 layers, 8 experts",
            "runtime  pytorch, cpu, precision int8, activations bfloat16",
            "limits   16 sequences at once, prompt 2048 tokens, prompt and output 4096 tokens",
            "now      2 running, 1 waiting, KV cache 25 % used",
            "so far   10 prompt tokens, 20 output tokens; finished: stop 3, length 4",
        ]

    def test_shows_prefix_cache_and_preemptions_of_an_engine_that_has_them(self, server: ScriptedServer) -> None:
        more = {"prefix_blocks_reused": 30, "prefix_blocks_missed": 10, "preemptions": 2}
        server.info = {"stats": {"prompt_tokens": 10} | more}
        result = mixtral("status", "--url", server.url)
        assert "so far   10 prompt tokens, 75 % of the prompt blocks from the cache, 2 preemptions" in result.stdout

    def test_shows_the_memory_of_the_engine_s_process(self, server: ScriptedServer) -> None:
        server.info = {
            "stats": {"memory": {"anonymous": 410_000_000, "mapped": 47_000_000_000, "peak": 47_500_000_000}}
        }
        result = mixtral("status", "--url", server.url)
        assert "memory   0.41 GB its own, 47.00 GB of mapped files, 47.50 GB at most so far" in result.stdout

    def test_json_has_everything(self, server: ScriptedServer) -> None:
        server.info = self.INFO
        result = mixtral("status", "--json", "--url", server.url)
        assert json.loads(result.stdout) == {"url": server.url, "ready": True} | self.INFO

    def test_a_loading_server_is_exit_code_1(self, server: ScriptedServer) -> None:
        server.ready = False
        result = mixtral("status", "--url", server.url)
        assert (result.exit_code, result.stdout) == (1, f"server   {server.url} is not ready\n")

    def test_no_server_is_exit_code_1(self) -> None:
        result = mixtral("status", "--url", "127.0.0.1:1")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: cannot reach")
