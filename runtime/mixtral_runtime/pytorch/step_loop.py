"""The order of launching and collecting steps, until no work is left."""

import logging
from typing import Protocol

from mixtral_runtime.pytorch.scheduler import Work
from mixtral_runtime.pytorch.step import Step, StepResult, StepRunner

logger = logging.getLogger(__name__)


class Ledger(Protocol):
    """Who has the work, and keeps account of it."""

    def next_work(self, *, wait: bool) -> list[Work]:
        """wait: for work. Empty when there is none and it does not wait, or when there will be none any more."""
        ...

    def launched(self, work: list[Work]) -> None:
        """Further work may build on this."""
        ...

    def failed(self, work: list[Work]) -> None:
        """What was launched has computed nothing."""
        ...

    def collected(self, results: list[StepResult]) -> None: ...

    def alive(self, work: list[Work]) -> list[Work]:
        """The part of it whose sequences still want it."""
        ...


def run_steps(runner: StepRunner, ledger: Ledger, *, launch_ahead: bool) -> None:
    """launch_ahead: a step is launched before the last one is collected, so that the device need not wait for the host.
    Raises what not even a step of one sequence survives, such as a lost device."""
    before: Step | None = None
    while (work := ledger.next_work(wait=before is None)) or before:
        if launch_ahead:
            before = _launch_and_collect(runner, ledger, work, before)
        else:
            _run_now(runner, ledger, work)


def _run_now(runner: StepRunner, ledger: Ledger, work: list[Work]) -> None:
    results = runner.run(work)
    ledger.launched(work)
    ledger.collected(results)


def _launch_and_collect(runner: StepRunner, ledger: Ledger, work: list[Work], before: Step | None) -> Step | None:
    """Launches this work, then collects the step before, whose tokens it may begin with. -> the launched step, None
    where there is none. What raises is run again with nothing ahead of it."""
    launched = None
    try:
        launched = runner.launch(work, before) if work else None
    except Exception:
        logger.exception("the launch of a step of %d sequences failed", len(work))
        runner.forget()
    else:
        ledger.launched(work)
    again = [] if launched else [work]
    if before:
        try:
            results = runner.collect(before)
        except Exception:
            logger.exception("a step of %d sequences failed on the device", len(before.work))
            runner.forget()
            if launched:
                ledger.failed(work)
            ledger.failed(before.work)
            launched, again = None, [before.work, work]
        else:
            ledger.collected(results)
    for steps in again:
        if alive := ledger.alive(steps):
            _run_now(runner, ledger, alive)
    return launched
