"""The recorded API of `tensorrt_llm.bindings.executor` against the one that is installed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from container_check.adapter_use import ADAPTER, AdapterUse, scan
from container_check.check import Failed, NotAvailable, Outcome
from container_check.difference import Difference, Weight, outcome
from container_check.environment import LIBRARY_VERSION
from container_check.signature import (
    Parameter,
    Signature,
    parse_signatures,
    recorded_overloads,
    recorded_signature,
    same_default,
)
from container_check.workplace import Workplace

RECORD = ADAPTER / "data" / "bindings_1_2.json"
FOUND_NAME = "bindings.json"
IMPORT_TIMEOUT_S = 300  # a cold image reads gigabytes of libraries
ADVICE = (
    "adapt runtime/mixtral_runtime/tensorrt_llm/ to what `import tensorrt_llm.bindings.executor as t; "
    "help(t.CLASS)` prints, and send the JSON report with it"
)
OPENAI_ADVICE = "the image's openai package is too old for its own tensorrt_llm: python3 -m pip install -U openai"


def imports(workplace: Workplace) -> Outcome:
    """Imports the bindings in a process of their own and keeps what they look like for the next check."""
    if workplace.library == "tensorrt_llm" and workplace.machine.packages["tensorrt_llm"] is None:
        raise NotAvailable("tensorrt_llm is not installed; it comes with NVIDIA's image")
    target = workplace.folder / FOUND_NAME
    target.unlink(missing_ok=True)
    done = workplace.program("introspect", workplace.library, workplace.bindings, target, timeout_s=IMPORT_TIMEOUT_S)
    if not target.is_file():
        raise Failed(f"importing it ended with status {done.status}, its last lines:", *done.last_lines)
    found = json.loads(target.read_text(encoding="utf-8"))
    if error := found.get("error"):
        known = OPENAI_ADVICE if "PartReasoningText" in error or "openai" in error else None
        raise Failed(
            f"import {workplace.bindings}: {error}",
            advice=known or "see whether `python3 -c 'import tensorrt_llm'` works in a fresh container of the image",
        )
    version = str(found["version"])
    other = "" if version.split("+")[0] == LIBRARY_VERSION else f", not the {LIBRARY_VERSION} that was recorded"
    return Outcome.passed(f"{workplace.library} {version}{other}, {len(found['classes'])} classes")


def signatures(workplace: Workplace) -> Outcome:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    found = json.loads((workplace.folder / FOUND_NAME).read_text(encoding="utf-8"))
    use = scan()
    differences = [*compare(record, found, use), *probe_differences(found["probes"], use)]
    classes = sum(1 for entry in record.values() if "init" in entry)
    return outcome(differences, f"{classes} classes and {len(record['enums'])} enums compared", ADVICE)


def compare(record: Mapping[str, Any], found: Mapping[str, Any], use: AdapterUse) -> list[Difference]:
    """record: the recorded API. found: what `programs/introspect.py` wrote."""
    differences: list[Difference] = []
    for name, entry in record.items():
        if isinstance(entry, dict) and "init" in entry:
            differences += _compare_class(name, entry, found["classes"].get(name), use)
    for name, members in record["enums"].items():
        differences += _compare_members(name, members, found["enums"].get(name), use)
    for name in record["functions"]:
        if name not in found["functions"]:
            differences.append(_absent(f"the function {name} is missing", use.uses(name)))
    known = {*record, *record["enums"], *record["functions"]}
    for kind in ("classes", "enums", "functions"):
        for name in sorted(set(found[kind]) - known):
            differences.append(Difference(Weight.HARMLESS, f"{name} is new"))
    return differences


def probe_differences(probes: Mapping[str, str], use: AdapterUse) -> list[Difference]:
    """What the signatures do not tell: of the values that are in doubt for 1.2.1, what a real object has."""
    found = []
    default = probes["ExecutorConfig().normalize_log_probs"]
    if default != "True":
        passed = use.passes("ExecutorConfig", "normalize_log_probs", 4)
        weight = Weight.HARMLESS if passed else Weight.NOTE
        found.append(Difference(weight, f"ExecutorConfig().normalize_log_probs is {default}, True was recorded"))
    if probes["KvCacheConfig().onboard_blocks"].startswith("AttributeError"):
        affects = use.passes("KvCacheConfig", "onboard_blocks", 6)
        found.append(_absent("KvCacheConfig().onboard_blocks is gone", affects))
    if (answer := probes["KvCacheRetentionConfig([])"]) != "made":
        expected = answer.startswith("TypeError")
        text = f"KvCacheRetentionConfig([]) cannot be made without directory: {answer}"
        found.append(Difference(Weight.HARMLESS if expected else Weight.NOTE, text))
    return found


def _absent(text: str, affects: bool) -> Difference:
    return Difference(Weight.AFFECTS_US if affects else Weight.HARMLESS, text)


def _compare_class(
    name: str, entry: Mapping[str, Any], found: Mapping[str, Any] | None, use: AdapterUse
) -> Iterator[Difference]:
    if found is None:
        yield _absent(f"the class {name} is missing", use.uses(name))
        return
    yield from _compare_overloads(name, "", recorded_overloads(entry), parse_signatures(found["init"], "__init__"), use)
    read_only = set(entry.get("read_only_properties", ()))
    for member in entry["properties"]:
        if member not in found["properties"]:
            yield _absent(f"{name}.{member} is missing", use.uses(member))
        elif member in read_only and found["properties"][member]:
            yield Difference(Weight.HARMLESS, f"{name}.{member} can be set now")
        elif member not in read_only and not found["properties"][member]:
            yield _absent(f"{name}.{member} cannot be set any more", use.uses(member))
    for member in sorted(set(found["properties"]) - set(entry["properties"])):
        yield Difference(Weight.HARMLESS, f"{name}.{member} is a new property")
    for member, overloads in entry["methods"].items():
        if member not in found["methods"]:
            yield _absent(f"{name}.{member}() is missing", use.uses(member))
        else:
            recorded = [recorded_signature(overload["args"]) for overload in overloads]
            there = parse_signatures(found["methods"][member], member)
            yield from _compare_overloads(name, member, recorded, there, use)
    static = [name for key in ("static_methods", "factories", "predicates") for name in entry.get(key, ())]
    for member in static:
        if member not in found["methods"]:
            yield _absent(f"{name}.{member}() is missing", use.uses(member))
    for member in sorted(set(found["methods"]) - set(entry["methods"]) - set(static)):
        if not member.startswith("__"):
            yield Difference(Weight.HARMLESS, f"{name}.{member}() is a new method")


def _compare_members(name: str, members: list[str], found: list[str] | None, use: AdapterUse) -> Iterator[Difference]:
    if found is None:
        yield _absent(f"the enum {name} is missing", use.uses(name))
        return
    for member in members:
        if member not in found:
            yield _absent(f"{name}.{member} is missing", use.uses(member))
    for member in found:
        if member not in members:
            # A value that we do not know may still be handed to us, such as a new finish reason.
            yield Difference(Weight.HARMLESS, f"{name}.{member} is new")


def _compare_overloads(
    owner: str, method: str, recorded: list[Signature], found: list[Signature], use: AdapterUse
) -> Iterator[Difference]:
    """Each recorded overload against the one most like it."""
    called, label = (method, f"{owner}.{method}()") if method else (owner, f"{owner}()")
    if recorded and not found:
        yield _absent(f"{label} has no signature that can be read", use.calls(called))
        return
    left = list(found)
    # First those whose arguments have the same names: whatever is left of both sides then changed.
    changed = []
    for signature in recorded:
        same = [other for other in left if [p.name for p in other] == [p.name for p in signature]]
        if same:
            left.remove(same[0])
            yield from compare_parameters(called, label, signature, same[0], use)
        else:
            changed.append(signature)
    for signature in changed:
        if not left:
            yield _absent(f"{label} has an overload less: ({', '.join(p.name for p in signature)})", use.calls(called))
            continue
        names = {parameter.name for parameter in signature}
        nearest = max(left, key=lambda other: len(names & {p.name for p in other}) - abs(len(names) - len(other)))
        left.remove(nearest)
        yield from compare_parameters(called, label, signature, nearest, use)
    if recorded:
        for extra in left:
            yield Difference(Weight.HARMLESS, f"{label} has a new overload: ({', '.join(p.name for p in extra)})")


def compare_parameters(
    called: str, label: str, recorded: Signature, found: Signature, use: AdapterUse
) -> Iterator[Difference]:
    there = {parameter.name: (place, parameter) for place, parameter in enumerate(found)}
    for place, parameter in enumerate(recorded):
        if parameter.name not in there:
            affects = use.passes(called, parameter.name, place)
            yield _absent(f"{label} has no argument {parameter.name} any more", affects)
        else:
            yield from _compare_parameter(called, label, place, parameter, *there[parameter.name], use)
    known = {parameter.name for parameter in recorded}
    for place, parameter in enumerate(found):
        if parameter.name not in known:
            required = parameter.default is None and use.calls(called)
            kind = "required argument" if parameter.default is None else "argument"
            pushes = not parameter.keyword_only and use.by_position(called, place)
            yield _absent(f"{label} has the new {kind} {parameter.name}", required or pushes)


def _compare_parameter(
    called: str, label: str, place: int, ours: Parameter, new_place: int, theirs: Parameter, use: AdapterUse
) -> Iterator[Difference]:
    where = f"{label}, argument {ours.name}"
    passed, by_position = use.passes(called, ours.name, place), use.by_position(called, place)
    if ours.keyword_only != theirs.keyword_only:
        kind = "can only be given by name" if theirs.keyword_only else "can be given by position"
        yield _absent(f"{where} {kind} now", theirs.keyword_only and by_position)
    elif not ours.keyword_only and place != new_place:
        yield _absent(f"{where} is at place {new_place + 1}, {place + 1} was recorded", by_position)
    if theirs.default is None and ours.default is not None:
        yield _absent(f"{where} is required now, the default was {ours.default}", use.calls(called) and not passed)
    elif not same_default(ours.default, theirs.default):
        weight = Weight.NOTE if use.calls(called) and not passed else Weight.HARMLESS
        yield Difference(weight, f"{where} has the default {theirs.default}, {ours.default or 'none'} was recorded")
    if ours.takes_none and not theirs.takes_none:
        yield _absent(f"{where} does not take None any more", passed)
    elif theirs.takes_none and not ours.takes_none:
        yield Difference(Weight.HARMLESS, f"{where} takes None now")
