"""The synthetic engine's settings are checked, and its clock follows them alone."""

from typing import Any

import pytest
from synthetic_clock import StepClock
from synthetic_settings import SyntheticSettings

from mixtral_runtime.errors import InvalidArgument

OPENED = 1000.0


def ends(configured: dict[str, Any], steps: int, tokens: int = 0, requests: int = 0) -> list[float]:
    """When each of the steps ends, in seconds after the engine was opened and went to work at once."""
    clock = StepClock(SyntheticSettings.of(configured), OPENED)
    found, end = [], OPENED
    for step in range(1, steps + 1):
        end = clock.end_of_step(step, end, tokens, requests)
        found.append(round(end - OPENED, 9))
    return found


def test_steps_without_more_follow_each_other() -> None:
    assert ends({"step_s": 0.5}, 4) == [0.5, 1.0, 1.5, 2.0]


def test_prefill_makes_a_step_longer() -> None:
    assert ends({"step_s": 0.5, "prefill_token_s": 0.01, "prefill_request_s": 0.2}, 1, 30, 2) == [1.2]


def test_jitter_is_bounded_and_the_same_for_the_same_seed() -> None:
    jittered = {"step_s": 1, "jitter": 0.25, "seed": 3}
    found = ends(jittered, 200)
    lengths = [later - earlier for earlier, later in zip([0.0, *found], found, strict=False)]
    assert 0.75 <= min(lengths) < 0.8
    assert 1.2 < max(lengths) <= 1.25
    assert found == ends(jittered, 200)
    assert found != ends(jittered | {"seed": 4}, 200)


def test_a_pause_at_a_step_and_every_so_many() -> None:
    assert ends({"step_s": 1, "pauses": [{"for_s": 5, "at_step": 2}]}, 4) == [1, 7, 8, 9]
    assert ends({"step_s": 1, "pauses": [{"for_s": 5, "at_step": 2, "every_steps": 2}]}, 4) == [1, 7, 8, 14]


def test_a_pause_at_a_time_and_every_so_often() -> None:
    once: dict[str, Any] = {"for_s": 5, "at_s": 2}
    assert ends({"step_s": 1, "pauses": [once]}, 4) == [1, 7, 8, 9]
    assert ends({"step_s": 1, "pauses": [once | {"every_s": 7}]}, 5) == [1, 7, 8, 14, 15]


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({"rate": 3}, "unknown key rate, known are step_s, jitter"),
        ({"step_s": -1}, "settings.step_s is -1, it must be at least 0"),
        ({"step_s": "fast"}, "settings.step_s is 'fast', it must be a number"),
        ({"jitter": 1.5}, "settings.jitter is 1.5, it must be at least 0 and at most 1"),
        ({"pauses": {}}, "pauses is not a list"),
        ({"pauses": [{"for_s": 1, "at_s": 1, "at_step": 1}]}, r"pauses\[0\].at_s and at_step are alternatives"),
        ({"pauses": [{"for_s": 1, "at_s": 1, "every_steps": 1}]}, "every_steps to at_step"),
        ({"pauses": [{"at_s": 1}]}, r"pauses\[0\] is incomplete: .*for_s"),
        ({"failures": [{"what": "step", "at": 0}]}, r"failures\[0\].at is 0, it must be at least 1"),
        ({"failures": [{"what": "all", "at": 1}]}, r"failures\[0\].what is 'all', it must be one of step, request"),
        ([], "the settings are not an object"),
    ],
)
def test_settings_that_are_not_sound_are_refused(configured: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        SyntheticSettings.of(configured)
