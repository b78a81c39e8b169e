"""`mixtral bench` against a scripted server: counts, coalesced responses, errors by kind, exit codes, files."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted_server import ScriptedServer, answer, failure, hang, heartbeat, inputs_of, pause

from mixtral_client.bench.result import BenchResult, read_result
from mixtral_client.cli import main

INFO = {
    "manifest": {"model": {"vocab_size": 1536}, "gpu": "cpu"},
    "limits": {"max_batch_size": 4, "max_input_len": 100, "max_seq_len": 128},
}
SMALL = ("--input-tokens", "6", "--output-tokens", "5", "--requests", "3", "--warmup-requests", "1")


@pytest.fixture
def ready(server: ScriptedServer) -> ScriptedServer:
    server.info = INFO
    server.play(
        heartbeat(),
        answer("a", num_input_tokens=[[6]], num_output_tokens=[[1]]),
        pause(0.01),
        answer("bcd", num_input_tokens=[[6]], num_output_tokens=[[3]]),
        pause(0.01),
        answer("", "length", num_input_tokens=[[6]], num_output_tokens=[[1]]),
        answer(final=True),
    )
    return server


def bench(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments, "--url", server.url])


def measured(server: ScriptedServer, path: Path, *arguments: str) -> BenchResult:
    done = bench(server, *arguments, "--output", str(path))
    assert done.exit_code == 0, done.stderr
    return read_result(path)


def generations(server: ScriptedServer) -> list[dict[str, Any]]:
    return [inputs_of(request) for request in server.requests if request.model_name == "ensemble"]


def test_requests_are_what_was_asked_for(ready: ScriptedServer, tmp_path: Path) -> None:
    measured(ready, tmp_path / "r.json", *SMALL)
    sent = generations(ready)
    assert len(sent) == 4, "one for warm-up and three"
    for inputs in sent:
        assert len(inputs["input_ids"][0]) == 6
        assert (inputs["max_tokens"], inputs["ignore_eos"], inputs["stream"]) == ([[5]], [[True]], [[True]])
    assert len({tuple(inputs["input_ids"][0]) for inputs in sent}) == 4


def test_counts_are_the_server_s_and_coalesced_responses_stay_together(ready: ScriptedServer, tmp_path: Path) -> None:
    (point,) = measured(ready, tmp_path / "r.json", *SMALL).points
    assert [record.measured for record in point.requests] == [False, True, True, True]
    for record in point.requests:
        assert [tokens for _, tokens in record.responses] == [1, 3, 1], "the heartbeat and the final flag bring none"
        assert (record.input_tokens, record.output_tokens, record.finish_reason) == (6, 5, "length")
        assert record.first_s == record.responses[0][0] >= record.sent_s >= record.scheduled_s >= 0
        assert record.end_s >= record.responses[-1][0]
    assert (point.summary.completed, point.summary.gap_s.count, point.summary.errors) == (3, 6, {})


def test_the_table_has_a_row_a_point_and_the_json_summary_no_requests(ready: ScriptedServer) -> None:
    table = bench(ready, *SMALL, "--concurrency", "1,2", "--slo", "ttft_p99=10s", "--price-per-hour", "3.6")
    assert "6/5, concurrency 1" in table.stdout
    assert "6/5, concurrency 2" in table.stdout
    assert table.stdout.count(" met") == 2
    assert "cost per million tokens" in table.stdout
    summary = json.loads(bench(ready, *SMALL, "--json").stdout)
    assert summary["points"][0]["summary"]["completed"] == 3
    assert "requests" not in summary["points"][0]
    assert summary["command"]["requests"] == 3


def test_several_processes_send_the_same_as_one(ready: ScriptedServer, tmp_path: Path) -> None:
    runs = []
    for processes in ("1", "2"):
        ready.requests.clear()
        (point,) = measured(ready, tmp_path / "r.json", *SMALL, "--concurrency", "2", "--processes", processes).points
        assert point.generator.processes == int(processes)
        assert [record.index for record in point.requests] == [0, 1, 2, 3]
        runs.append(sorted(inputs["input_ids"][0] for inputs in generations(ready)))
    assert runs[0] == runs[1]


def test_a_file_s_prompts_are_sent_as_text(ready: ScriptedServer, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "Sum up.", "context": "Long."}\n')
    (point,) = measured(ready, tmp_path / "r.json", "--prompts", str(prompts), "--requests", "2").points
    for inputs in generations(ready):
        assert inputs["text_input"] == [[b"Sum up.\n\nLong."]]
        assert inputs["max_tokens"] == [[128]]
        assert "ignore_eos" not in inputs
    assert (point.workload.kind, point.workload.file) == ("file", "prompts.jsonl")


def test_an_open_loop_sends_on_its_schedule(ready: ScriptedServer, tmp_path: Path) -> None:
    load = ("--rate", "50", "--arrivals", "constant", "--requests", "10", "--warmup", "0.1")
    (point,) = measured(ready, tmp_path / "r.json", *SMALL[:4], *load).points
    assert [record.scheduled_s for record in point.requests] == pytest.approx([i / 50 for i in range(15)])
    assert [record.measured for record in point.requests] == [False] * 5 + [True] * 10
    assert point.window == pytest.approx((0.1, 0.28))
    assert all(record.sent_s >= record.scheduled_s for record in point.requests)


def test_errors_are_counted_by_their_code_word_and_all_of_them_fail_the_run(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.info = INFO
    server.play(failure("in ensemble 'ensemble', UNAVAILABLE: the queue is full, the limit is 256"))
    done = bench(server, *SMALL, "--output", str(tmp_path / "r.json"))
    assert done.exit_code == 1
    assert "3 requests (3 UNAVAILABLE)" in done.stderr
    assert "the queue is full, the limit is 256" in done.stderr
    assert done.stderr.endswith("error: no request completed\n")
    (point,) = read_result(tmp_path / "r.json").points
    assert point.summary.errors == {"UNAVAILABLE": 3}
    assert point.requests[1].error is not None


def test_a_generation_that_the_server_ended_early_is_a_failure(server: ScriptedServer, tmp_path: Path) -> None:
    server.info = INFO
    server.play(answer("a", "timeout", num_input_tokens=[[6]], num_output_tokens=[[1]], final=True))
    bench(server, *SMALL, "--output", str(tmp_path / "r.json"))
    assert read_result(tmp_path / "r.json").points[0].summary.errors == {"TIMEOUT": 3}


def test_a_server_that_falls_silent_ends_the_run(server: ScriptedServer, tmp_path: Path) -> None:
    server.info = INFO
    server.play(answer("a", num_input_tokens=[[6]], num_output_tokens=[[1]]), hang())
    done = bench(
        server, *SMALL, "--idle-timeout", "0.4", "--warmup-requests", "0", "--output", str(tmp_path / "r.json")
    )
    assert done.exit_code == 1
    assert "sent nothing for 0.4 s" in done.stderr
    result = read_result(tmp_path / "r.json")
    assert result.partial
    assert result.points[0].summary.errors == {"IDLE_TIMEOUT": 1}


def test_what_cannot_be_run_is_one_line(server: ScriptedServer, tmp_path: Path) -> None:
    server.info = INFO
    too_long = bench(server, "--input-tokens", "101")
    assert (too_long.exit_code, too_long.stdout) == (1, "")
    assert "prompt would be 101 tokens, the limit is 100" in too_long.stderr
    no_file = bench(server, "--prompts", str(tmp_path / "none.jsonl"))
    assert no_file.exit_code == 1
    assert "No such file" in no_file.stderr
    server.ready = False
    assert "is not ready" in bench(server).stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = CliRunner().invoke(main, ["bench", "--url", "127.0.0.1:9"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: cannot reach 127.0.0.1:9")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "0"], "neither a number from 1 nor max"),
        (["--rate", "1,0"], "must be above 0"),
        (["--rate", "fast"], "not a rate"),
        (["--search-rate", "5-2", "--slo", "ttft_p99=1s"], "not a range of rates"),
        (["--slo", "ttft=5"], "is not a limit"),
        (["--input-tokens", "9-3"], "must run from at least 1"),
        (["--shared-prefix", "1.5"], "is not in the range"),
        (["--processes", "0"], "neither a number"),
        (["--preset", "other"], "is not one of"),
        (["--output", "no-such-folder/result.json"], "does not exist"),
        (["--requests", "5", "--duration", "5"], "cannot be given together"),
    ],
)
def test_wrong_usage_exits_with_2_before_anything_is_sent(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["bench", *arguments, "--url", "127.0.0.1:9"])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
