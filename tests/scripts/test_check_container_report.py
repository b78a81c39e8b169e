"""Running checks one after the other, the page, the report and the exit code."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from container_check.check import Check, Failed, NotAvailable, Outcome, Status, run_all, select
from container_check.checks import CHECKS
from container_check.machine import look_around
from container_check.report import Results, exit_code, page, to_json, totals
from container_check.workplace import Workplace

from mixtral_runtime.errors import InvalidArgument

MACHINE = look_around()


def passes(workplace: Workplace) -> Outcome:
    return Outcome.passed("a detail")


def fails(workplace: Workplace) -> Outcome:
    raise Failed("what is wrong", "and where", advice="this " * 30 + "and all is well")


def breaks(workplace: Workplace) -> Outcome:
    raise ZeroDivisionError("division by zero")


def is_absent(workplace: Workplace) -> Outcome:
    raise NotAvailable("there is no GPU")


def hangs(workplace: Workplace) -> Outcome:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    workplace.run([sys.executable, "-c", child], log="hang", timeout_s=0.5)
    return Outcome.passed()


def run(tmp_path: Path, *checks: Check) -> Results:
    return run_all(checks, Workplace(tmp_path, tmp_path, MACHINE), lambda check: None)


def statuses(results: Results) -> list[Status]:
    return [outcome.status for _, outcome in results]


def test_one_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    results = run(
        tmp_path,
        Check("fails", "f", fails),
        Check("breaks", "b", breaks),
        Check("absent", "a", is_absent),
        Check("passes", "p", passes),
    )
    assert statuses(results) == [Status.FAIL, Status.FAIL, Status.NOT_AVAILABLE, Status.PASS]
    broken = results[1][1]
    assert broken.details[0] == "ZeroDivisionError: division by zero"
    assert broken.advice is not None


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        (fails, Status.SKIPPED, "needs first, which did not pass"),
        (is_absent, Status.NOT_AVAILABLE, "needs first, which is not available here"),
        (passes, Status.PASS, "a detail"),
    ],
)
def test_what_depends_on_another(tmp_path: Path, first: object, status: Status, reason: str) -> None:
    checks = (
        Check("first", "", first),  # type: ignore[arg-type]
        Check("second", "", passes, ("first",)),
        Check("third", "", passes, ("second",)),
    )
    results = run(tmp_path, *checks)
    assert statuses(results)[1:] == [status, status]
    assert results[1][1].details == (reason,)


def test_a_failure_counts_more_than_an_absence(tmp_path: Path) -> None:
    checks = (Check("a", "", is_absent), Check("f", "", fails), Check("c", "", passes, ("a", "f")))
    assert run(tmp_path, *checks)[2][1].status == Status.SKIPPED


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    ((_, outcome),) = run(tmp_path, Check("hangs", "", hangs))
    assert outcome.status == Status.FAIL
    assert "had not ended after 0.5 s and was killed" in outcome.details[0]
    time.sleep(0.2)
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "time.sleep(60)" not in alive


def test_checks_that_are_named_bring_what_they_need() -> None:
    assert [check.name for check in select(CHECKS, ["served"])] == ["import", "engine-int8", "served"]
    assert select(CHECKS, []) == list(CHECKS)
    with pytest.raises(InvalidArgument, match="there is no check nonsense, there are image, driver, "):
        select(CHECKS, ["nonsense"])


def test_every_check_needs_only_what_runs_before_it() -> None:
    for place, check in enumerate(CHECKS):
        assert set(check.needs) <= {earlier.name for earlier in CHECKS[:place]}


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ((passes, passes), 0),
        ((passes, is_absent), 3),
        ((is_absent, fails), 1),
        ((fails, passes), 1),
        ((breaks, is_absent), 1),
    ],
)
def test_exit_codes(tmp_path: Path, checks: tuple[object, ...], expected: int) -> None:
    made = [Check(f"c{place}", "", check) for place, check in enumerate(checks)]  # type: ignore[arg-type]
    assert exit_code(run(tmp_path, *made)) == expected


def some_results(tmp_path: Path) -> Results:
    return run(
        tmp_path,
        Check("passes", "something holds", passes),
        Check("fails", "something else holds", fails),
        Check("depends", "never seen", passes, ("fails",)),
        Check("absent-one", "never seen", is_absent),
    )


def test_the_page(tmp_path: Path) -> None:
    text = click.unstyle(page(MACHINE, some_results(tmp_path), width=100))
    assert text[text.index("PASS") :] == (
        "PASS                passes      something holds\n"
        "      a detail\n"
        "FAIL                fails       something else holds\n"
        "      what is wrong\n"
        "      and where\n"
        "      -> this this this this this this this this this this this this this this this this this this\n"
        "         this this this this this this this this this this this this and all is well\n"
        "SKIPPED             depends     needs fails, which did not pass\n"
        "NOT AVAILABLE HERE  absent-one  there is no GPU\n"
        "\n"
        "1 passed, 1 failed, 1 skipped, 1 not available here"
    )


def test_a_page_stays_a_page(tmp_path: Path) -> None:
    """Of many lines only the first are on it."""
    results = run(tmp_path, Check("many", "much", lambda workplace: Outcome.passed(*map(str, range(40)))))
    text = page(MACHINE, results, width=100)
    assert "28 more lines in the JSON report" in text
    assert len(text.splitlines()) < 22


def test_an_absence_is_never_counted_as_passed(tmp_path: Path) -> None:
    results = run(tmp_path, Check("a", "", is_absent), Check("p", "", passes))
    assert totals(results).startswith("1 passed, 1 not available here; nothing is known of what is not available")


def test_the_report_has_every_line_and_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    where = Check("where", "", lambda workplace: Outcome.passed(f"in {workplace.folder}/engine", f"{Path.home()}/x"))
    results = [*some_results(tmp_path), *run(tmp_path, where)]
    report = json.loads(json.dumps(to_json(MACHINE, results, "2026-01-01T00:00:00+00:00", tmp_path)))
    assert report["summary"] == {"pass": 2, "fail": 1, "not_available": 1, "skipped": 1}
    assert report["exit_code"] == 1
    assert [check["name"] for check in report["checks"]] == ["passes", "fails", "depends", "absent-one", "where"]
    assert report["checks"][4]["details"] == ["in FOLDER/engine", "~/x"]
    assert report["machine"]["python"] == MACHINE.python
    text = json.dumps(report)
    assert "hf_secret" not in text
    assert str(tmp_path) not in text
    assert not re.search(r'"(environ\w*|hostname|user)"', text)
