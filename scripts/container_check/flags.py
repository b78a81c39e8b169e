"""The recorded flags of `trtllm-build` against those that its `--help` lists."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from container_check.check import Failed, NotAvailable, Outcome
from container_check.difference import Difference, Weight, outcome
from container_check.workplace import Workplace
from mixtral_build.limits import LimitOverrides, plan_limits
from mixtral_build.trtllm_command import PROGRAM, check_combination, kernel_layout, trtllm_build_command
from mixtral_runtime.checkpoint import read_config
from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.devices import CARDS
from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.plan import with_precision

HELP_TIMEOUT_S = 300  # it imports the whole library
PRECISIONS = ("int8", "fp8", "awq", "16bit")
ADVICE = "adapt build/mixtral_build/trtllm_command.py and its recorded flags, and send the JSON report with it"
OPTION = re.compile(r"^ {2}(?P<head>-.*?)(?: {2,}(?P<help>.*))?$")
NAME = re.compile(r"--[\w-]+")
CHOICES = re.compile(r"\{([^}]*)\}")
DEFAULT = re.compile(r".*\(default: (.*)\)$")  # the last: a help text may speak of defaults itself


@dataclass(frozen=True, slots=True)
class Flag:
    """default: as argparse prints it, None where it prints none."""

    names: tuple[str, ...]
    choices: tuple[str, ...] | None
    takes_value: bool
    default: str | None


def check(workplace: Workplace) -> Outcome:
    if shutil.which(PROGRAM, path=workplace.variables().get("PATH")) is None:
        raise NotAvailable(f"{PROGRAM} is not on PATH; it comes with tensorrt_llm")
    done = workplace.run(
        # Wide, because argparse breaks lines at the terminal's width.
        ["env", "COLUMNS=4000", PROGRAM, "--help"],
        log="trtllm-build-help",
        timeout_s=HELP_TIMEOUT_S,
    )
    found = parse_help(done.output)
    if done.status != 0 or not found:
        raise Failed(f"{PROGRAM} --help ended with status {done.status}, its last lines:", *done.last_lines)
    record = recorded_flags()
    used = used_flags(workplace.model)
    return outcome(
        list(compare(record, found, used)), f"{len(record)} flags compared, {len(used)} of them are ours", ADVICE
    )


def recorded_flags() -> dict[str, dict[str, Any]]:
    text = files("mixtral_build").joinpath("data/trtllm_build_flags.json").read_text(encoding="utf-8")
    return {name: flag for name, flag in json.loads(text).items() if name.startswith("--")}


def used_flags(model_dir: Path) -> dict[str, set[str]]:
    """The values that our command lines give to each flag, over all cards, precisions and presets."""
    model = CheckpointConfig.from_hf(read_config(model_dir))
    used: dict[str, set[str]] = {}
    for device in CARDS.values():
        for precision in PRECISIONS:
            layout = kernel_layout(device) if precision == "int8" else None
            config = replace(with_precision(model, precision), layout=layout)
            try:
                check_combination(config, device)
            except InvalidArgument:
                continue  # refused, so nothing is ever built so
            limits = plan_limits(config, device, LimitOverrides())
            command = trtllm_build_command(
                config, device, limits, checkpoint_dir=Path("in"), engine_dir=Path("out"), timing_cache=Path("cache")
            )
            for name, value in zip(command[1::2], command[2::2], strict=True):
                used.setdefault(name, set()).add(value)
    return used


def parse_help(text: str) -> dict[str, Flag]:
    """By each of its names. Reads argparse's layout: two spaces before an option, its help beside or below it."""
    found: dict[str, Flag] = {}
    head, help_text = "", ""
    for line in [*text.splitlines(), "  --end"]:
        if match := OPTION.match(line):
            found |= _flag(head, help_text)
            head, help_text = match["head"], match["help"] or ""
        elif line.startswith("   "):
            help_text = f"{help_text} {line.strip()}".strip()
        else:  # a heading, or the library's own words
            found |= _flag(head, help_text)
            head, help_text = "", ""
    return found


def compare(
    record: Mapping[str, Mapping[str, Any]], found: Mapping[str, Flag], used: Mapping[str, set[str]]
) -> Iterator[Difference]:
    for name, recorded in record.items():
        for alias in (name, *recorded.get("aliases", ())):
            if alias not in found:
                yield _weighed(f"{alias} is missing", alias in used)
        if name in found:
            yield from _compare_flag(name, recorded, found[name], used.get(name))
    known = {*record, *(alias for flag in record.values() for alias in flag.get("aliases", ())), "--help"}
    for name in sorted(set(found) - known):
        yield Difference(Weight.HARMLESS, f"{name} is new")


def _compare_flag(name: str, recorded: Mapping[str, Any], found: Flag, used: set[str] | None) -> Iterator[Difference]:
    if (recorded["type"] != "store_true") != found.takes_value:
        text = "takes a value now" if found.takes_value else "takes no value any more"
        yield _weighed(f"{name} {text}", used is not None)
        return
    # argparse prints no choices where a function of the program checks them.
    if recorded["choices"] is not None and found.choices is not None:
        for choice in recorded["choices"]:
            if choice not in found.choices:
                yield _weighed(f"{name} does not take {choice} any more", choice in (used or ()))
        for choice in found.choices:
            if choice not in recorded["choices"]:
                yield Difference(Weight.HARMLESS, f"{name} takes {choice} too")
    elif found.choices is not None:
        for value in sorted((used or set()) - set(found.choices)):
            yield Difference(Weight.AFFECTS_US, f"{name} takes only {', '.join(found.choices)}, we give {value}")
    default = None if recorded["default"] == "SUPPRESS" else str(recorded["default"])
    if found.default is not None and default != found.default:
        weight = Weight.NOTE if used is None else Weight.HARMLESS
        yield Difference(weight, f"{name} has the default {found.default}, {default or 'none'} was recorded")


def _weighed(text: str, affects: bool) -> Difference:
    return Difference(Weight.AFFECTS_US if affects else Weight.HARMLESS, text)


def _flag(head: str, help_text: str) -> dict[str, Flag]:
    """head: such as `--max_seq_len N, --max_decoder_seq_len N`."""
    without_choices = CHOICES.sub("CHOICES", head)
    names = tuple(NAME.findall(without_choices))
    choices, default = CHOICES.search(head), DEFAULT.match(help_text)
    takes_value = any(" " in part.strip() for part in without_choices.split(","))
    flag = Flag(names, tuple(choices[1].split(",")) if choices else None, takes_value, default[1] if default else None)
    return dict.fromkeys(names, flag)
