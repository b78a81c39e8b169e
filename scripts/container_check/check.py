"""A check, what it found, and running a list of them so that one that fails never ends the others."""

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from subprocess import TimeoutExpired
from typing import Self

from container_check.workplace import Workplace
from mixtral_runtime.errors import InvalidArgument


class Status(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_AVAILABLE = "not_available"
    SKIPPED = "skipped"


class NotAvailable(Exception):
    """What a check needs is not in this machine; the message is one sentence that says what."""


class Failed(Exception):
    """What was found is wrong. args: one line each. advice: what to do."""

    def __init__(self, *details: str, advice: str | None = None) -> None:
        super().__init__(*details)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Outcome:
    """details: lines, the most important first. advice: what to do about a failure. seconds: that it took."""

    status: Status
    details: tuple[str, ...] = ()
    advice: str | None = None
    seconds: float = 0.0

    @classmethod
    def passed(cls, *details: str) -> Self:
        return cls(Status.PASS, details)


@dataclass(frozen=True, slots=True)
class Check:
    """shows: what is true when it passes, in a few words. run: returns an Outcome or raises NotAvailable or Failed.
    needs: names of the checks before it without whose success it has no meaning."""

    name: str
    shows: str
    run: Callable[[Workplace], Outcome]
    needs: tuple[str, ...] = ()


def select(checks: Sequence[Check], names: Collection[str]) -> list[Check]:
    """The named checks and those they need, in order; all when no name is given. Raises InvalidArgument."""
    by_name = {check.name: check for check in checks}
    if unknown := sorted(set(names) - set(by_name)):
        raise InvalidArgument(f"there is no check {unknown[0]}, there are {', '.join(by_name)}")
    wanted = set(names or by_name)
    for check in reversed(checks):
        if check.name in wanted:
            wanted.update(check.needs)
    return [check for check in checks if check.name in wanted]


def run_all(
    checks: Sequence[Check], workplace: Workplace, begins: Callable[[Check], object]
) -> list[tuple[Check, Outcome]]:
    """begins: told each check before it runs."""
    outcomes: dict[str, Outcome] = {}
    for check in checks:
        begins(check)
        begun = time.monotonic()
        outcome = _blocked(check, outcomes) or _run(check, workplace)
        outcomes[check.name] = replace(outcome, seconds=round(time.monotonic() - begun, 1))
    return [(check, outcomes[check.name]) for check in checks]


def _blocked(check: Check, outcomes: dict[str, Outcome]) -> Outcome | None:
    """That of a check whose needs are not met: a failure before it is worth more attention than an absence."""
    unmet = {name: outcomes[name].status for name in check.needs if outcomes[name].status != Status.PASS}
    for name, status in unmet.items():
        if status in (Status.FAIL, Status.SKIPPED):
            return Outcome(Status.SKIPPED, (f"needs {name}, which did not pass",))
    for name in unmet:
        return Outcome(Status.NOT_AVAILABLE, (f"needs {name}, which is not available here",))
    return None


def _run(check: Check, workplace: Workplace) -> Outcome:
    try:
        return check.run(workplace)
    except NotAvailable as reason:
        return Outcome(Status.NOT_AVAILABLE, (str(reason),))
    except Failed as failure:
        return Outcome(Status.FAIL, tuple(map(str, failure.args)), failure.advice)
    except TimeoutExpired as late:
        program = late.cmd[0] if isinstance(late.cmd, list) else late.cmd
        return Outcome(
            Status.FAIL,
            (f"{program} had not ended after {late.timeout:g} s and was killed",),
            "look at its output with --keep, and run this check alone with --only",
        )
    except Exception as error:  # whatever a library that was never run here may raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(
            Status.FAIL,
            (f"{type(error).__name__}: {error}", f"raised in {where.name}, {where.filename}:{where.lineno}"),
            "this is a defect of the check or of what it tests: please report it with the JSON report",
        )
