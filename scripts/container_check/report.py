"""What was found: a page for people, and JSON to attach to a bug report."""

import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from container_check.check import Check, Outcome, Status
from container_check.environment import IMAGE_TAG
from container_check.machine import Machine
from mixtral_build.version import project_version

FORMAT_VERSION = 1
EXIT_CODES = {Status.FAIL: 1, Status.SKIPPED: 1, Status.NOT_AVAILABLE: 3}
LABELS = {
    Status.PASS: ("PASS", "green"),
    Status.FAIL: ("FAIL", "red"),
    Status.NOT_AVAILABLE: ("NOT AVAILABLE HERE", "yellow"),
    Status.SKIPPED: ("SKIPPED", "magenta"),
}
MOST_LINES = 12  # of one check on the page; the JSON has all
Results = Sequence[tuple[Check, Outcome]]


def exit_code(results: Results) -> int:
    """0 when everything passed, 1 when something failed, 3 when nothing failed but something was not available."""
    statuses = {outcome.status for _, outcome in results}
    return next((code for status, code in EXIT_CODES.items() if status in statuses), 0)


def page(machine: Machine, results: Results, width: int | None = None) -> str:
    width = min(width or shutil.get_terminal_size((110, 24)).columns, 120)
    name_width = max(len(check.name) for check, _ in results)
    label_width = max(len(LABELS[outcome.status][0]) for _, outcome in results)
    title_indent, indent = " " * (label_width + name_width + 4), " " * 6
    facts = [part for line in summary_of(machine) for part in _wrapped(line, "  ", "    ", width)]
    lines = ["mixtral-triton container check", *facts, ""]
    for check, outcome in results:
        label, color = LABELS[outcome.status]
        time = f" ({outcome.seconds:.0f} s)" if outcome.seconds >= 1 else ""
        # What was not looked at has one reason, and that is all there is to say.
        no_result = outcome.status in (Status.NOT_AVAILABLE, Status.SKIPPED)
        title, details = (outcome.details[0], ()) if no_result else (check.shows, outcome.details)
        first, *rest = _wrapped(f"{title}{time}", title_indent, title_indent, width)
        lines.append(
            f"{click.style(f'{label:{label_width}}', fg=color, bold=True)}  {check.name:{name_width}}  {first.strip()}"
        )
        lines += rest
        for detail in details[:MOST_LINES]:
            lines += _wrapped(detail, indent, f"{indent}  ", width)
        if (more := len(details) - MOST_LINES) > 0:
            lines += [f"{indent}{more} more lines in the JSON report"]
        if outcome.advice:
            lines += _wrapped(f"-> {outcome.advice}", indent, f"{indent}   ", width)
    lines += ["", *_wrapped(totals(results), "", "", width)]
    return "\n".join(lines)


def totals(results: Results) -> str:
    counts = Counter(outcome.status for _, outcome in results)
    words = {Status.PASS: "passed", Status.FAIL: "failed", Status.SKIPPED: "skipped"}
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    if counts[Status.NOT_AVAILABLE]:
        parts.append(f"{counts[Status.NOT_AVAILABLE]} not available here")
    text = ", ".join(parts)
    if exit_code(results) == 3:
        text += f"; nothing is known of what is not available: run this in {IMAGE_TAG} on the GPU"
    return text


def summary_of(machine: Machine) -> list[str]:
    packages = [f"{name} {version}" for name, version in machine.packages.items() if version]
    gpus = [f"{gpu.name} (SM{gpu.sm}, {gpu.memory_mib / 1024:.0f} GiB)" for gpu in machine.gpus]
    image = "not NVIDIA's image" if machine.image is None else f"image {machine.image}, Triton {machine.triton}"
    memory = f"{machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB"
    return [
        f"{image}; Python {machine.python}, {', '.join(packages)}",
        f"{machine.system}, {memory}; {', '.join(gpus) or 'no GPU'}, driver {machine.driver or 'none'}",
    ]


def to_json(machine: Machine, results: Results, started_at: str, folder: Path) -> dict[str, Any]:
    """No environment, no host name; the home and working folders are left out of the lines."""

    def clean(line: str) -> str:
        return line.replace(str(folder), "FOLDER").replace(str(Path.home()) + "/", "~/")

    counts = Counter(outcome.status for _, outcome in results)
    return {
        "format_version": FORMAT_VERSION,
        "project": {"name": "mixtral-triton", "version": project_version()},
        "expected_image": IMAGE_TAG,
        "started_at": started_at,
        "machine": asdict(machine),
        "summary": {status.value: counts[status] for status in Status},
        "exit_code": exit_code(results),
        "checks": [
            {
                "name": check.name,
                "shows": check.shows,
                "status": outcome.status.value,
                "seconds": outcome.seconds,
                "details": [clean(line) for line in outcome.details],
                "advice": outcome.advice and clean(outcome.advice),
            }
            for check, outcome in results
        ],
    }


def _wrapped(text: str, indent: str, hanging: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
