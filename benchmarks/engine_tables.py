"""The result file of `engine.py` as Markdown. Ratios are those of the same round: median, and p10 to p90 behind."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engine_report import LLAMA, MEMORY, TRANSFORMERS, Spread
from tables import GIB, Rows, markdown

Report = Mapping[str, Any]
NONE = "–"
SMALL = 0.02
TITLES = {"random": "Random Mixtral of 0.8 billion parameters", "demo": "Demo model"}


def summary(report: Report) -> str:
    """int8 beside everything else, on the random model."""
    rows: Rows = [
        (
            "",
            f"int8 / {LLAMA}",
            f"int8 / {TRANSFORMERS}",
            "int8 / our 16bit",
            "share of the memory's speed",
            "int8, tokens/s",
        )
    ]
    model = _models(report)[0]
    for phase, size in _cases(report, model):
        found = [_ratio(report, model, phase, size, "int8", peer) for peer in (LLAMA, TRANSFORMERS, "16bit", MEMORY)]
        rows.append((_case(phase, size), *found, _speed(report, model, phase, size, "int8")))
    return f"{markdown(rows)}\n{about(report)}"


def details(report: Report) -> str:
    """Every engine, model and path."""
    parts = []
    for model in _models(report):
        runners = _runners(report, model)
        parts += [
            f"### {TITLES[model]}\n",
            f"Our speed divided by that of {LLAMA}:\n",
            _by_runner(report, model, [r for r in runners if r not in (LLAMA, TRANSFORMERS, MEMORY)], LLAMA),
            "Decode, share of the speed at which the memory gives the bytes of weights that a step needs:\n",
            _by_runner(report, model, [r for r in runners if r != MEMORY], MEMORY, phases=("decode",)),
            "Tokens/s, medians:\n",
            _speeds(report, model, runners),
        ]
    parts += ["### Where the time of a step goes\n", _breakdown(report)]
    parts += ["### Served\n", _served(report), "### Loading\n", _loading(report), about(report)]
    return "\n".join(parts)


def about(report: Report) -> str:
    """How it was measured, and by what."""
    settings, idle = report["settings"], report["idle"]
    versions = {key: value for runner in report["runners"].values() for key, value in runner["versions"].items()}
    rounds = "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"
    kernels = next((one["kernels"] for one in report["runners"].values() if "kernels" in one), None)
    text = [
        f"{rounds}, {settings['threads']} threads each, {settings['steps']} decode steps after a context of "
        f"{settings['context_tokens']} tokens.",
        f"The machine was idle before {idle['turns_idle']} of {idle['turns_idle'] + idle['turns_not_idle']} turns.",
        ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    if kernels:
        text.append(f"Our kernels: {kernels}.")
    if llama := report["runners"].get(LLAMA):
        text.append(f"{LLAMA}: built by {llama['compiler']}{_amx(llama['build'])}.")
    text += [f"{name} was left out: {reason}." for name, reason in report["skipped"].items()]
    return "\n".join(text) + "\n"


def _amx(build: str) -> str:
    return ", with its AMX path" if "AMX_INT8 = 1" in build else ", without AMX"


def _models(report: Report) -> list[str]:
    return list(dict.fromkeys(one["model"] for one in report["measurements"]))


def _cases(report: Report, model: str) -> list[tuple[str, int]]:
    return list(dict.fromkeys((one["phase"], one["size"]) for one in report["measurements"] if one["model"] == model))


def _runners(report: Report, model: str) -> list[str]:
    return list(dict.fromkeys(one["runner"] for one in report["measurements"] if one["model"] == model))


def _case(phase: str, size: int) -> str:
    return f"{phase}, {size} {'tokens' if phase == 'prefill' else 'sequence' if size == 1 else 'sequences'}"


def _ratio(report: Report, model: str, phase: str, size: int, runner: str, peer: str) -> str:
    key = (model, phase, size, runner, peer)
    for one in report["ratios"]:
        if (one["model"], one["phase"], one["size"], one["runner"], one["peer"]) == key:
            return _spread(Spread(**one["ratio"]))
    return NONE


def _spread(spread: Spread, digits: int = 2) -> str:
    return f"{spread.median:,.{digits}f} ({spread.p10:,.{digits}f} to {spread.p90:,.{digits}f})"


def _speed(report: Report, model: str, phase: str, size: int, runner: str) -> str:
    key = (model, phase, size, runner)
    for one in report["measurements"]:
        if (one["model"], one["phase"], one["size"], one["runner"]) == key:
            return f"{statistics.median(one['tokens_per_s']):,.0f}"
    return NONE


def _by_runner(
    report: Report, model: str, runners: Sequence[str], peer: str, phases: Sequence[str] = ("decode", "prefill")
) -> str:
    rows: Rows = [("", *runners)]
    for phase, size in _cases(report, model):
        if phase in phases:
            rows.append((_case(phase, size), *(_ratio(report, model, phase, size, name, peer) for name in runners)))
    return markdown(rows)


def _speeds(report: Report, model: str, runners: Sequence[str]) -> str:
    rows: Rows = [("", *runners)]
    for phase, size in _cases(report, model):
        rows.append((_case(phase, size), *(_speed(report, model, phase, size, name) for name in runners)))
    return markdown(rows)


def _breakdown(report: Report) -> str:
    """Of the first model. An operation that takes less than SMALL of every step goes with the rest."""
    found = report["breakdown"][_models(report)[0]]
    steps = found["steps"]
    names = dict.fromkeys(name for step in steps.values() for name in step["parts_ms"])
    shares = {name: [step["parts_ms"].get(name, 0.0) / step["step_ms"] for step in steps.values()] for name in names}
    shown = sorted((name for name in shares if max(shares[name]) >= SMALL), key=lambda name: -shares[name][0])
    rest = [1 - sum(shares[name][i] for name in shown) for i in range(len(steps))]
    rows: Rows = [("", *steps), ("whole step, ms", *(f"{step['step_ms']:.1f}" for step in steps.values()))]
    rows += [(f"`{name}`", *(f"{share:.0%}" for share in shares[name])) for name in shown]
    rows.append(("all else, Python between the operations included", *(f"{share:.0%}" for share in rest)))
    return f"{markdown(rows)}\nint8, {found['threads']} threads, each time the least of several.\n"


def _served(report: Report) -> str:
    rows: Rows = [
        ("model", "streams", "decode, served / alone", "served, tokens/s", "TTFT served, ms", "TTFT alone, ms")
    ]
    for one in report["served"]:
        server, engine = one["server"], one["engine"]
        pairs = zip(server, engine, strict=True)
        share = Spread.of([a["decode_tokens_per_s"] / b["decode_tokens_per_s"] for a, b in pairs])
        speed = statistics.median(a["decode_tokens_per_s"] for a in server)
        ttft = (_spread(Spread.of([a["ttft_s"] * 1000 for a in path]), 0) for path in (server, engine))
        rows.append((one["model"], str(one["streams"]), _spread(share), f"{speed:,.0f}", *ttft))
    if len(rows) == 1:
        return "Not measured.\n"
    return f"{markdown(rows)}\nint8; over gRPC from Triton, and through the engine's own interface.\n"


def _loading(report: Report) -> str:
    rows: Rows = [("model", "engine", "until ready, s", "its own memory", "of mapped files", "both at most")]
    for one in report["loading"]:
        sizes = (f"{one[name] / GIB:.2f} GiB" for name in ("anonymous_bytes", "mapped_bytes", "peak_bytes"))
        rows.append((one["model"], one["runner"], f"{one['ready_s']:.2f}", *sizes))
    return f"{markdown(rows)}\nMemory after all rounds, KV cache included; weights were in the page cache.\n"
