"""What the rounds of the engine's benchmark say: ratios of the same round, and shares of the memory's speed."""

import pytest
from engine_report import Measurement, Phase, Ratio, Spread, ratios, table
from hypothesis import given
from hypothesis import strategies as st


def measured(runner: str, tokens_per_s: list[float], step_bytes: float = 100.0, phase: Phase = "decode") -> Measurement:
    return Measurement("random", phase, 8, runner, tokens_per_s, step_bytes)


def ratio(found: list[Ratio], runner: str, peer: str) -> Spread:
    (one,) = (r for r in found if (r.runner, r.peer) == (runner, peer))
    return one.ratio


def test_ratios_are_of_the_same_round() -> None:
    """A machine that is slow in one round is slow for both."""
    found = list(ratios([measured("int8", [20.0, 2.0, 60.0]), measured("llama.cpp", [10.0, 1.0, 20.0])]))
    spread = ratio(found, "int8", "llama.cpp")
    assert (spread.median, spread.p10, spread.p90) == pytest.approx((2.0, 2.0, 2.8))


def test_the_share_of_the_memory_s_speed_counts_each_one_s_own_bytes() -> None:
    """16 bit at half the speed of int8's limit reads as many bytes a second as the limit does."""
    found = list(ratios([measured("16bit", [5.0], 200.0), measured("memory", [10.0], 100.0)]))
    assert ratio(found, "16bit", "memory").median == 1.0


def test_a_prompt_has_no_share_of_the_memory_s_speed() -> None:
    found = [measured("int8", [5.0], phase="prefill"), measured("memory", [10.0], phase="prefill")]
    assert not list(ratios(found))


def test_who_is_compared_with_whom() -> None:
    names = ("int8", "16bit", "llama.cpp", "transformers", "memory")
    pairs = {(r.runner, r.peer) for r in ratios([measured(name, [1.0]) for name in names])}
    assert pairs == {
        *(("int8", peer) for peer in ("llama.cpp", "transformers", "16bit", "memory")),
        *(("16bit", peer) for peer in ("llama.cpp", "transformers", "memory")),
        ("llama.cpp", "memory"),
        ("transformers", "memory"),
    }


def test_who_was_left_out_is_in_no_ratio() -> None:
    assert {r.peer for r in ratios([measured("int8", [1.0]), measured("16bit", [1.0])])} == {"16bit"}


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_a_spread_lies_within_its_values(values: list[int]) -> None:
    found = Spread.of(values)
    assert sorted([found.p10, found.median, found.p90]) == pytest.approx([found.p10, found.median, found.p90])
    assert min(values) - 1e-9 <= found.p10 <= found.p90 + 1e-9 <= max(values) + 2e-9


def test_the_tenths_are_those_of_the_rounds() -> None:
    assert Spread.of([float(n) for n in range(11)]) == Spread(5.0, 1.0, 9.0)


def test_the_table_has_a_line_for_each_engine() -> None:
    report = {
        "measurements": [
            {"model": "random", "phase": "decode", "size": 8, "runner": "int8", "tokens_per_s": [3.0, 5.0]},
        ],
        "ratios": [
            {
                "model": "random",
                "phase": "decode",
                "size": 8,
                "runner": "int8",
                "peer": "llama.cpp",
                "ratio": {"median": 1.5, "p10": 1.25, "p90": 1.75},
            }
        ],
    }
    line = table(report).splitlines()[1]
    assert line.split() == ["random", "decode", "8", "int8", "4.0", "1.50", "(1.25-1.75)", "-", "-"]
