"""The synthetic engine keeps the seam's promises, and says what its checker expects."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from make_engine import MODEL, main, make_engine
from synthetic_emissions import EmissionWriter, read_emissions
from synthetic_engine import SyntheticEngine
from synthetic_settings import Pause, SyntheticSettings
from synthetic_tokens import END_TOKEN, FIRST_TOKEN, expected_log_prob, expected_tokens, prompt_key

from mixtral_runtime.engine import EngineLimits, FinishReason, Output, Request
from mixtral_runtime.errors import Internal, InvalidArgument, MixtralError, Unavailable
from mixtral_runtime.manifest import Manifest
from mixtral_runtime.open_engine import open_engine
from mixtral_runtime.tokenizer import load_tokenizer

VOCABULARY = 1536
PROMPT = [1, 400, 500]
LIMITS = {
    "max_batch_size": 4,
    "max_input_len": 500,
    "max_seq_len": 1000,
    "max_num_tokens": 100,
    "max_queue_size": 8,
}
LONG_S = 30.0  # of a step that a test never waits for
PATIENCE_S = 60.0

Make = Callable[..., SyntheticEngine]


@pytest.fixture
def make() -> Iterator[Make]:
    """make({"step_s": 0.01}, max_batch_size=1): an engine, as fast as it goes if not told otherwise."""
    engines: list[SyntheticEngine] = []

    def build(configured: dict[str, Any] | None = None, path: Path | None = None, **limits: int) -> SyntheticEngine:
        parsed = SyntheticSettings.of({"step_s": 0} | (configured or {}))
        emissions = None if path is None else EmissionWriter(path)
        engines.append(SyntheticEngine(EngineLimits(**LIMITS | limits), VOCABULARY, parsed, emissions))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def collect(engine: SyntheticEngine, *request_ids: int) -> dict[int, list[Output]]:
    """All outputs of these requests, which the engine must end."""
    found: dict[int, list[Output]] = {request_id: [] for request_id in request_ids}
    while not all(outputs and outputs[-1].final for outputs in found.values()):
        polled = engine.poll(PATIENCE_S)
        assert polled, "the engine fell silent"
        assert len({output.id for output in polled}) == len(polled), "two outputs of one request in one poll"
        for output in polled:
            assert not found[output.id] or not found[output.id][-1].final, "an output after the final one"
            found[output.id].append(output)
    return found


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@settings(max_examples=15, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=250), st.integers(1, 200)),
        min_size=1,
        max_size=10,
    ),
    batch=st.integers(1, 4),
)
def test_every_request_gets_exactly_its_tokens_in_order(requests: list[tuple[list[int], int]], batch: int) -> None:
    limits = EngineLimits(**LIMITS | {"max_batch_size": batch, "max_queue_size": 16})
    engine = SyntheticEngine(limits, VOCABULARY, SyntheticSettings(step_s=0))
    ids = [engine.submit(Request(prompt, count)) for prompt, count in requests]
    found = collect(engine, *ids)
    for request_id, (prompt, count) in zip(ids, requests, strict=True):
        assert tokens(found[request_id]) == expected_tokens(prompt, count)
        last = found[request_id][-1]
        assert (last.finish_reason, last.counts.output_tokens) == (FinishReason.LENGTH, count)
        assert last.counts.input_tokens == len(prompt)
    stats = engine.stats()
    assert stats.output_tokens == sum(count for _, count in requests)
    assert stats.prompt_tokens == sum(len(prompt) for prompt, _ in requests)
    assert stats.active == stats.queued == 0
    assert stats.kv_blocks_free == stats.kv_blocks_total
    engine.close()


def test_the_tokens_are_ordinary_text_of_the_demo_vocabulary() -> None:
    tokenizer = load_tokenizer(MODEL)
    said = expected_tokens(PROMPT, 5000)
    assert set(said) <= set(range(FIRST_TOKEN, END_TOKEN))
    assert not set(range(FIRST_TOKEN, END_TOKEN)) & set(tokenizer.all_special_ids)
    assert all(tokenizer.convert_ids_to_tokens(token).replace("▁", " ").isprintable() for token in said)
    assert len(set(said)) > 1000
    assert said[:100] == expected_tokens(PROMPT, 100)
    assert said[:100] != expected_tokens([1, 400, 501], 100)


def test_log_probabilities_are_known_ones(make: Make) -> None:
    engine = make()
    request = Request(PROMPT, 9, return_log_probs=True, return_prompt_log_probs=True, top_log_probs=3)
    request_id = engine.submit(request)
    outputs = collect(engine, request_id)[request_id]
    assert outputs[0].prompt_log_probs == [expected_log_prob(token) for token in PROMPT[1:]]
    assert all(output.prompt_log_probs is None for output in outputs[1:])
    said = tokens(outputs)
    assert [p for output in outputs for p in output.log_probs or []] == [expected_log_prob(token) for token in said]
    tops = [top for output in outputs for top in output.top_log_probs or []]
    assert [(top.token_ids[0], top.log_probs[0]) for top in tops] == [(t, expected_log_prob(t)) for t in said]
    assert all(sorted(top.log_probs, reverse=True) == top.log_probs and len(top.token_ids) == 3 for top in tops)


def test_a_request_that_does_not_stream_gets_one_output(make: Make) -> None:
    engine = make()
    request_id = engine.submit(Request(PROMPT, 50, streaming=False))
    (output,) = collect(engine, request_id)[request_id]
    assert output.token_ids == expected_tokens(PROMPT, 50)


def test_a_stop_sequence_ends_the_generation(make: Make) -> None:
    engine = make()
    said = expected_tokens(PROMPT, 50)
    request_id = engine.submit(Request(PROMPT, 50, stop_sequences=[said[10:12]]))
    outputs = collect(engine, request_id)[request_id]
    assert tokens(outputs) == said[:12]
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_steps_merge_into_one_output_while_nobody_polls(make: Make) -> None:
    engine = make()
    request_id = engine.submit(Request(PROMPT, 500))
    while engine.stats().finished["length"] == 0:  # the steps go on without a poll
        pass
    (output,) = engine.poll(PATIENCE_S)
    assert (output.id, output.final, output.token_ids) == (request_id, True, expected_tokens(PROMPT, 500))


def test_waiting_requests_run_by_priority_then_arrival(make: Make) -> None:
    engine = make({"pauses": [{"for_s": 0.3, "at_step": 1}]}, max_batch_size=1)
    first = engine.submit(Request(PROMPT, 1))
    while engine.stats().active == 0:
        pass
    ordered = [engine.submit(Request(PROMPT, 1, priority=priority)) for priority in (0.5, 0.5, 0.9)]
    ended: list[int] = []
    while len(ended) < 4:
        ended += [output.id for output in engine.poll(PATIENCE_S)]
    assert ended == [first, ordered[2], ordered[0], ordered[1]]
    assert engine.stats().steps == 4, "each alone in its step"


def test_the_first_output_says_how_long_the_request_queued(make: Make) -> None:
    engine = make({"step_s": 0.05}, max_batch_size=1)
    first, second = engine.submit(Request(PROMPT, 3)), engine.submit(Request(PROMPT, 3))
    found = collect(engine, first, second)
    told = {request_id: [output.queued_s for output in outputs] for request_id, outputs in found.items()}
    assert told[first][0] is not None
    assert (told[second][0] or 0.0) > 0.0
    assert all(value is None for values in told.values() for value in values[1:])


def test_a_long_prompt_is_prefilled_in_chunks(make: Make) -> None:
    engine = make(max_num_tokens=100)
    request_id = engine.submit(Request([1] * 250, 1))
    collect(engine, request_id)
    assert engine.stats().steps == 3


def test_a_full_queue_refuses_at_once(make: Make) -> None:
    engine = make({"step_s": LONG_S}, max_batch_size=1, max_queue_size=2)
    engine.submit(Request(PROMPT, 4))
    while engine.stats().active == 0:
        pass
    for _ in range(2):
        engine.submit(Request(PROMPT, 4))
    with pytest.raises(Unavailable, match="the queue is full: 2 requests wait, the limit is 2"):
        engine.submit(Request(PROMPT, 4))


def test_a_bad_request_is_refused(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="the prompt has 501 tokens, the limit is 500"):
        make().submit(Request([1] * 501, 4))


def test_cancel_and_timeout_end_with_what_was_said(make: Make) -> None:
    engine = make({"step_s": 0.005}, max_batch_size=2)
    cancelled, late = engine.submit(Request(PROMPT, 900)), engine.submit(Request(PROMPT, 900, timeout_s=0.1))
    queued = engine.submit(Request(PROMPT, 900))
    first = engine.poll(PATIENCE_S)
    engine.cancel(queued)
    engine.cancel(cancelled)
    engine.cancel(12345)  # unknown ones are ignored
    found: dict[int, list[Output]] = {request_id: [] for request_id in (cancelled, late, queued)}
    for output in first:
        found[output.id].append(output)
    while not all(outputs and outputs[-1].final for outputs in found.values()):
        for output in engine.poll(PATIENCE_S):
            found[output.id].append(output)
    reasons = [found[i][-1].finish_reason for i in (cancelled, late, queued)]
    assert reasons == [FinishReason.CANCELLED, FinishReason.TIMEOUT, FinishReason.CANCELLED]
    assert tokens(found[queued]) == []
    for request_id in (cancelled, late):
        said = tokens(found[request_id])
        assert said == expected_tokens(PROMPT, 900)[: len(said)]
        assert 0 < len(said) < 900
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total


def test_a_deadline_ends_a_request_that_waits(make: Make) -> None:
    engine = make({"step_s": 0.005}, max_batch_size=1)
    running, late = engine.submit(Request(PROMPT, 60)), engine.submit(Request(PROMPT, 900, timeout_s=0.05))
    (output,) = collect(engine, running, late)[late]
    assert (output.finish_reason, output.token_ids) == (FinishReason.TIMEOUT, [])
    assert engine.stats().queued == 0


def test_close_drains_then_cancels_and_outputs_stay(make: Make) -> None:
    engine = make({"step_s": 0.001}, max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 5)) for _ in range(3)]
    engine.close(drain_s=PATIENCE_S)
    found = collect(engine, *ids)
    assert [found[i][-1].finish_reason for i in ids] == [FinishReason.LENGTH] * 3
    with pytest.raises(Unavailable, match="the engine is shutting down"):
        engine.submit(Request(PROMPT, 5))

    engine = make({"step_s": LONG_S})
    request_id = engine.submit(Request(PROMPT, 5))
    closing = Thread(target=engine.close)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive(), "closing waits for a long step"
    assert collect(engine, request_id)[request_id][-1].finish_reason is FinishReason.CANCELLED


def outcome(outputs: list[Output]) -> tuple[FinishReason | None, str | None, int]:
    error: MixtralError | None = outputs[-1].error
    return outputs[-1].finish_reason, None if error is None else error.text, len(tokens(outputs))


COMPUTE_FAILED = "INTERNAL: the engine failed to compute this request"
STOPPED = "INTERNAL: the engine has stopped after a failure"


def test_a_step_that_fails_ends_the_requests_in_it_alone(make: Make) -> None:
    engine = make({"failures": [{"what": "step", "at": 3}]}, max_batch_size=1)
    bad, good = engine.submit(Request(PROMPT, 10)), engine.submit(Request(PROMPT, 10))
    found = collect(engine, bad, good)
    assert outcome(found[bad]) == (FinishReason.ERROR, COMPUTE_FAILED, 2)
    assert outcome(found[good]) == (FinishReason.LENGTH, None, 10)


def test_steps_that_always_fail(make: Make) -> None:
    engine = make({"failures": [{"what": "step", "at": 3, "always": True}]}, max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 10)) for _ in range(3)]
    found = collect(engine, *ids)
    assert [outcome(found[i]) for i in ids] == [(FinishReason.ERROR, COMPUTE_FAILED, said) for said in (2, 0, 0)]


@pytest.mark.parametrize("after", [0, 4])
def test_one_request_fails_in_the_middle(make: Make, after: int) -> None:
    engine = make({"failures": [{"what": "request", "at": 2, "tokens": after}]})
    ids = [engine.submit(Request(PROMPT, 10)) for _ in range(3)]
    found = collect(engine, *ids)
    assert [outcome(found[i]) for i in ids] == [
        (FinishReason.LENGTH, None, 10),
        (FinishReason.ERROR, COMPUTE_FAILED, after),
        (FinishReason.LENGTH, None, 10),
    ]


def test_an_engine_that_stops_ends_every_request(make: Make) -> None:
    engine = make({"step_s": 0.2, "failures": [{"what": "engine", "at": 3}]}, max_batch_size=1)
    ids = [engine.submit(Request(PROMPT, 10)) for _ in range(2)]
    found = collect(engine, *ids)
    assert [outcome(found[i]) for i in ids] == [(FinishReason.ERROR, STOPPED, said) for said in (2, 0)]
    with pytest.raises(Internal, match="the engine has stopped"):
        engine.submit(Request(PROMPT, 4))


def test_emissions_are_recorded_per_token_and_request(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "emissions"
    engine = make({"step_s": 0.001, "pauses": [{"for_s": 0.2, "at_step": 6}]}, path, max_batch_size=1)
    other = [1, 600]
    ids = [engine.submit(Request(prompt, count)) for prompt, count in ((PROMPT, 10), (other, 7), (PROMPT, 3))]
    collect(engine, *ids)
    first, again = read_emissions(path, PROMPT)
    (between,) = read_emissions(path, other)
    assert [len(e.times_ns) for e in (first, between, again)] == [10, 7, 3]
    assert first.submitted_ns < first.times_ns[0]
    assert first.times_ns[-1] < between.times_ns[0] < between.times_ns[-1] < again.times_ns[0]
    assert first.times_ns[5] - first.times_ns[4] >= 0.15e9, "no pause before the sixth token"


def test_emissions_that_were_overwritten_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "emissions"
    writer = EmissionWriter(path, steps=4, requests=2)
    for step in range(1, 9):
        writer.step(step, 100 * step)
    for number in range(3):
        writer.end(writer.begin(number, 6, 50), 3)
    writer.end(writer.begin(prompt_key(PROMPT), 6, 50), 3)
    assert read_emissions(path, PROMPT)[0].times_ns.tolist() == [600, 700, 800]
    writer.step(10, 1000)
    with pytest.raises(ValueError, match="were overwritten"):
        read_emissions(path, PROMPT)
    other = tmp_path / "other"
    other.write_bytes(b"x" * 64)
    with pytest.raises(ValueError, match="is no record of emissions"):
        read_emissions(other, PROMPT)


def test_an_engine_directory_is_opened_by_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_engine(tmp_path, {"step_s": 0, "emissions": "emissions.bin"})
    engine = open_engine(tmp_path)
    assert isinstance(engine, SyntheticEngine)
    request_id = engine.submit(Request(PROMPT, 5))
    assert tokens(collect(engine, request_id)[request_id]) == expected_tokens(PROMPT, 5)
    engine.close()
    assert len(read_emissions(tmp_path / "emissions.bin", PROMPT)[0].times_ns) == 5


def test_the_command_writes_an_engine_directory(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "engine"), "--set", "step_s=0.5", "--set", 'pauses=[{"for_s": 1, "at_s": 2}]']
    assert CliRunner().invoke(main, [*arguments, "--max-batch-size", "3"]).exit_code == 0
    assert Manifest.load(tmp_path / "engine").limits.max_batch_size == 3
    found = SyntheticSettings.load(tmp_path / "engine")
    assert (found.step_s, found.pauses) == (0.5, (Pause(for_s=1.0, at_s=2.0),))
    for wrong, message in {"step=1": "unknown key step", "step_s=x": "is not KEY=VALUE"}.items():
        refused = CliRunner().invoke(main, [str(tmp_path / "other"), "--set", wrong])
        assert (refused.exit_code, message in refused.stderr) == (1, True)
    assert not (tmp_path / "other").exists()
