"""Generator processes: they divide a point, stop when told, and a dead one is noticed."""

import os
import signal
from collections.abc import Iterator

import pytest
from scripted_server import ScriptedServer, answer, hang

from mixtral_client.bench.division import Amount
from mixtral_client.bench.exchange import Target
from mixtral_client.bench.result import ClosedLoad, Load, OpenLoad
from mixtral_client.bench.runner import GeneratorDied, Generators, Live, Raw
from mixtral_client.bench.statistics import steady_window
from mixtral_client.bench.workload import Lengths, SyntheticPrompts

SOURCE = SyntheticPrompts(Lengths(4, 4), Lengths(2, 2), 0.0, 0, 1536)
WHOLE = answer("ab", "length", num_input_tokens=[[4]], num_output_tokens=[[2]], final=True)


@pytest.fixture
def pair(server: ScriptedServer) -> Iterator[Generators]:
    server.play(WHOLE)
    with Generators(Target(server.url), 2) as generators:
        yield generators


def run(generators: Generators, load: Load, amount: Amount, *, stop_when: int | None = None) -> Raw:
    """stop_when: stop as soon as so many requests are running."""
    latest = [Live(0.0, 0, 0, [])]
    return generators.run(
        load,
        amount,
        SOURCE,
        ignore_eos=True,
        stopping=lambda: stop_when is not None and latest[0].in_flight >= stop_when,
        watch=lambda live: latest.__setitem__(0, live),
    )


@pytest.mark.parametrize("load", [ClosedLoad(3), OpenLoad(200.0, "poisson", 0)], ids=["closed", "open"])
def test_processes_share_the_indices_without_gaps_or_repeats(pair: Generators, load: Load) -> None:
    raw = run(pair, load, Amount(requests=20, warmup_requests=5))
    assert sorted(record.index for record in raw.records) == list(range(25))
    assert sorted(record.index for record in raw.records if not record.measured) == list(range(5))
    assert raw.generator.processes == 2
    assert raw.generator.responses == 25
    assert not raw.stopped


def test_points_follow_one_another_on_the_same_processes(pair: Generators) -> None:
    for _ in range(3):
        assert len(run(pair, ClosedLoad(2), Amount(requests=4)).records) == 4


def test_more_workers_than_requests_leave_a_window(pair: Generators) -> None:
    load = ClosedLoad(8)
    raw = run(pair, load, Amount(requests=3))
    begin, end = steady_window(raw.records, load, raw.dry_s)
    assert len(raw.records) == 3
    assert end > begin


@pytest.mark.parametrize("load", [ClosedLoad(4), OpenLoad(100.0, "constant", 0)], ids=["closed", "open"])
def test_stopping_cuts_off_what_is_running(server: ScriptedServer, load: Load) -> None:
    server.play(answer("a", num_input_tokens=[[4]], num_output_tokens=[[1]]), hang())
    with Generators(Target(server.url), 2) as generators:
        raw = run(generators, load, Amount(duration_s=60.0), stop_when=4)
    assert raw.stopped
    assert len(raw.records) >= 4
    assert {record.error.kind for record in raw.records if record.error} == {"INTERRUPTED"}
    assert server.cancelled.wait(10)


def test_a_stop_that_comes_before_the_first_request_is_not_lost(pair: Generators) -> None:
    raw = run(pair, OpenLoad(0.01, "constant", 0), Amount(duration_s=1000.0), stop_when=0)
    assert raw.stopped
    assert raw.duration_s < 500


def test_a_generator_that_dies_is_an_error_and_no_hang(pair: Generators) -> None:
    os.kill(pair.process_ids[0], signal.SIGKILL)
    with pytest.raises(GeneratorDied, match="ended with exit code -9"):
        run(pair, ClosedLoad(2), Amount(requests=4))
