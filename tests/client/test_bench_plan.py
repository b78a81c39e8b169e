"""What options and presets mean on a given server: which points, how long, and what is left out and why."""

import click
import pytest

from mixtral_client.bench.division import Amount
from mixtral_client.bench.plan import (
    BenchOptions,
    NothingToRun,
    Shape,
    amount,
    plan_loads,
    plan_tasks,
    shape,
    with_shapes,
)
from mixtral_client.bench.presets import PRESETS
from mixtral_client.bench.result import ClosedLoad, OpenLoad
from mixtral_client.bench.runner import processes_for
from mixtral_client.bench.slo import parse_slo
from mixtral_client.bench.workload import Lengths
from mixtral_client.commands.bench_options import resolve

MANIFEST = {"model": {"vocab_size": 1536}}
DEMO = {"max_batch_size": 16, "max_input_len": 2047, "max_seq_len": 2048, "max_queue_size": 256}
LARGE = {"max_batch_size": 256, "max_input_len": 32767, "max_seq_len": 32768, "max_queue_size": 256}


def names(options: BenchOptions, limits: dict[str, int]) -> list[str]:
    tasks, _ = plan_tasks(options, MANIFEST, limits)
    return [str(task) for task in tasks]


def test_the_presets_are_those_of_the_write_ups() -> None:
    assert names(PRESETS["baseten"], LARGE) == ["512/128"]
    assert plan_loads(PRESETS["baseten"], LARGE) == [ClosedLoad(1)]
    assert names(PRESETS["fireworks"], LARGE) == ["1000/50"]
    assert [type(load) for load in plan_loads(PRESETS["fireworks"], LARGE)] == [OpenLoad] * 5
    assert names(PRESETS["friendli"], LARGE) == ["dolly-like"]
    rates = PRESETS["friendli"].rates
    assert list(rates) == sorted(rates)
    assert PRESETS["friendli"].arrivals == "poisson"
    assert PRESETS["friendli"].slo
    assert names(PRESETS["nvidia"], LARGE) == [
        "128/128", "128/2048", "128/4096", "500/2000", "1000/1000", "2048/128", "2048/2048", "5000/500", "20000/2000",
    ]  # fmt: skip
    assert plan_loads(PRESETS["nvidia"], LARGE) == [ClosedLoad(512)]


def test_every_preset_says_what_it_is_called() -> None:
    assert all(options.preset == name for name, options in PRESETS.items())


def test_what_the_server_cannot_take_is_left_out_with_the_limit_and_a_way_out() -> None:
    tasks, skipped = plan_tasks(PRESETS["nvidia"], MANIFEST, DEMO)
    assert [str(task) for task in tasks] == ["128/128", "1000/1000"]
    reasons = {entry.what: entry.reason for entry in skipped}
    assert len(reasons) == 7
    assert reasons["2048/128"].startswith("prompt would be 2048 tokens, the limit is 2047; --scale-lengths 0.9")
    assert reasons["128/2048"].startswith("prompt and output would be 2176 tokens, the limit is 2048")


def test_the_scale_that_a_reason_names_fits() -> None:
    _, skipped = plan_tasks(PRESETS["nvidia"], MANIFEST, DEMO)
    smallest = min(float(entry.reason.split("--scale-lengths ")[1].split()[0]) for entry in skipped)
    scaled = BenchOptions(shapes=PRESETS["nvidia"].shapes, scale_lengths=smallest)
    assert plan_tasks(scaled, MANIFEST, DEMO)[1] == []


def test_a_server_that_can_take_nothing_is_an_error() -> None:
    with pytest.raises(NothingToRun, match="5000/500: prompt would be 5000 tokens, the limit is 2047"):
        plan_tasks(BenchOptions(shapes=(shape(5000, 500),)), MANIFEST, DEMO)
    with pytest.raises(NothingToRun, match="vocabulary size"):
        plan_tasks(BenchOptions(shapes=(shape(5, 5),)), {}, DEMO)


def test_the_most_load_is_twice_the_batch_and_never_more_than_queues() -> None:
    most = BenchOptions(concurrency=(2, "max"))
    assert plan_loads(most, DEMO) == [ClosedLoad(2), ClosedLoad(32)]
    assert plan_loads(most, DEMO | {"max_queue_size": 4}) == [ClosedLoad(2), ClosedLoad(20)]
    with pytest.raises(NothingToRun, match="max_batch_size"):
        plan_loads(most, {})


def test_how_much_is_sent_unless_said_otherwise() -> None:
    assert amount(BenchOptions(), ClosedLoad(1)) == Amount(requests=16, warmup_requests=1)
    assert amount(BenchOptions(), ClosedLoad(32)) == Amount(requests=128, warmup_requests=32)
    assert amount(BenchOptions(), OpenLoad(2.0, "poisson", 0)) == Amount(duration_s=30.0, warmup_s=2.0)
    said = BenchOptions(duration_s=5.0, warmup_requests=0)
    assert amount(said, ClosedLoad(4)) == Amount(duration_s=5.0)


def test_options_replace_what_the_preset_says() -> None:
    options = resolve("fireworks", {"concurrency": (4,), "requests": 10, "seed": 3})
    assert (options.concurrency, options.rates) == ((4,), ())
    assert (options.requests, options.duration_s) == (10, None)
    assert options.warmup_s == 5.0, "not touched"
    assert options.shapes == PRESETS["fireworks"].shapes


def test_one_length_may_be_replaced_alone() -> None:
    options = resolve("nvidia", {"output_tokens": Lengths(8, 8)})
    assert str(options.shapes[0]) == "128/8"
    assert len(options.shapes) == 6, "pairs that became equal are run once"
    assert resolve("friendli", {"input_tokens": Lengths(5, 9)}).shapes == (Shape(Lengths(5, 9), Lengths(128, 128)),)
    assert with_shapes(BenchOptions(), None, None).shapes == (shape(512, 128),)


def test_without_anything_one_request_at_a_time() -> None:
    options = resolve(None, {})
    assert (options.concurrency, [str(entry) for entry in options.shapes]) == ((1,), ["512/128"])


def test_bursty_arrivals_record_their_shape() -> None:
    assert resolve(None, {"rates": (2.0,), "arrivals": "bursty"}).burstiness == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurrency": (1,), "rates": (1.0,)}, "--concurrency and --rate cannot be given together"),
        ({"requests": 5, "duration_s": 3.0}, "--requests and --duration cannot"),
        ({"warmup_requests": 5, "warmup_s": 3.0}, "--warmup-requests and --warmup cannot"),
        ({"prompts": "file", "input_tokens": Lengths(1, 1)}, "--prompts and --input-tokens cannot"),
        ({"search": (1.0, 2.0)}, "--search-rate needs --slo"),
        ({"arrivals": "constant"}, "--arrivals belongs to an open loop"),
        ({"rates": (1.0,), "burstiness": 0.5}, "--burstiness belongs to --arrivals bursty"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        resolve(None, given)


def test_a_search_needs_one_workload() -> None:
    with pytest.raises(click.UsageError, match="needs one workload"):
        resolve("nvidia", {"search": (1.0, 2.0), "slo": parse_slo("ttft_p99=1s")})


def test_automatic_processes_leave_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert processes_for([ClosedLoad(1), ClosedLoad(64)], 128) == 1
    assert processes_for([ClosedLoad(200)], 128) == 4
    assert processes_for([ClosedLoad(10_000)], 128) == 4
    assert processes_for([OpenLoad(1.0, "poisson", 0)], 128) == 1
    assert processes_for([OpenLoad(100.0, "poisson", 0)], 128) == 3
