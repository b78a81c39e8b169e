"""The synthetic engine behind the real server: every token arrives once and in order, whatever happens to others."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic_emissions import read_emissions
from synthetic_server import synthetic_server
from synthetic_tokens import expected_log_prob, expected_tokens
from system_server import Answer, Server, idle

from mixtral_serving.server.installation import unsupported_platform

STREAMS = 32
TOKENS = 150
FAILS = 5  # the number of the request that fails


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def server(engine_dir: Path) -> Iterator[Server]:
    if reason := unsupported_platform():
        pytest.skip(reason)
    settings = {
        "step_s": 0.01,
        "jitter": 0.5,
        "emissions": "emissions.bin",
        "failures": [{"what": "request", "at": FAILS, "tokens": 20}],
    }
    with (engine_dir / "log").open("w") as log, synthetic_server(engine_dir, settings, log=log) as process:
        yield Server(process.address)


def test_no_token_of_many_streams_is_lost_swapped_or_repeated(server: Server, engine_dir: Path) -> None:
    prompts = [[1, 300 + number, 400] for number in range(STREAMS)]
    answers: dict[int, Answer] = {}

    def ask(number: int) -> None:
        answers[number] = server.ask(
            input_ids=prompts[number], max_tokens=TOKENS, stream=True, return_output_ids=True, return_log_probs=True
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [number for number in range(STREAMS) if answers[number].error]
    assert len(failed) == 1, "the one request that is set to fail, and no other"
    assert "INTERNAL: the engine failed to compute this request" in str(answers[failed[0]].error)
    for number, prompt in enumerate(prompts):
        said = answers[number].values("output_ids")
        expected = expected_tokens(prompt, TOKENS)
        if number in failed:
            assert said == expected[: len(said)]
            continue
        assert said == expected
        assert answers[number].values("finish_reason") == [b"length"]
        (emission,) = read_emissions(engine_dir / "emissions.bin", prompt)
        assert len(emission.times_ns) == TOKENS
        assert (np.diff(emission.times_ns) > 0).all()
    server.wait_for_stats(idle)


def test_prompt_log_probabilities_are_the_prompt_s(server: Server) -> None:
    prompt = list(range(300, 1300))
    answer = server.ask(input_ids=prompt, max_tokens=1, return_prompt_log_probs=True)
    assert answer.values("prompt_log_probs") == [expected_log_prob(token) for token in prompt[1:]]
