"""Engines of the demo model: TensorRT-LLM's greedy tokens beside the PyTorch engine's on the same checkpoint."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from container_check.check import Failed, NotAvailable, Outcome
from container_check.workplace import LAST_LINES, Finished, Workplace
from mixtral_build.trtllm_engine import LOG_NAME
from mixtral_runtime.devices import FP8_ARCHITECTURE

PROMPTS = (
    "Once upon a time",
    "One day, a little girl named Anna",
    "The king was very sad because",
    "Tom and his dog went to the river",
    "In a small house near the forest",
)
TOKENS = 64
MUST_AGREE = 8  # tokens; later ones may part where two are almost equally likely, since the arithmetic differs
BUILD_ADVICE = "run it alone with --only and --keep FOLDER: every log stays there; send them with the JSON report"
LIMITS = ("--max-batch-size", "4", "--max-seq-len", "512")
QUANTIZE_TIMEOUT_S, BUILD_TIMEOUT_S, GENERATE_TIMEOUT_S = 600, 1800, 600


def int8(workplace: Workplace) -> Outcome:
    return _check(workplace, "int8")


def fp8(workplace: Workplace) -> Outcome:
    if workplace.gpu is not None and workplace.gpu.sm < FP8_ARCHITECTURE:
        raise NotAvailable(f"FP8 needs SM{FP8_ARCHITECTURE} or later, GPU 0 is SM{workplace.gpu.sm}")
    return _check(workplace, "fp8")


def arguments(workplace: Workplace) -> Outcome:
    """Penalties, biases, bans and the least length, on the engine that `int8` has built."""
    if workplace.gpu is None:
        raise NotAvailable("TensorRT-LLM runs engines on a GPU only, and there is none")
    target = workplace.folder / "int8" / "arguments.json"
    done = workplace.program("arguments", engine_folder(workplace, "int8"), target, timeout_s=GENERATE_TIMEOUT_S)
    _must(done, "generating with each of the arguments")
    cases = json.loads(target.read_text(encoding="utf-8"))
    lines = [f"{case['argument']}: {'holds' if case['holds'] else 'does not hold'}, {case['tokens']}" for case in cases]
    if not all(case["holds"] for case in cases):
        raise Failed(*lines, advice="requests that give this argument are answered wrongly; send the JSON report")
    return Outcome.passed(*lines)


def engine_folder(workplace: Workplace, precision: str) -> Path:
    return workplace.folder / precision / "tensorrt-llm"


def tokens_file(workplace: Workplace, precision: str) -> Path:
    return workplace.folder / precision / "tensorrt-llm.json"


def _check(workplace: Workplace, precision: str) -> Outcome:
    if workplace.gpu is None:
        raise NotAvailable("TensorRT-LLM builds and runs engines on a GPU only, and there is none")
    folder = workplace.folder / precision
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run, where it was kept
    checkpoint, expected = folder / "checkpoint", folder / "pytorch.json"
    engine, found = engine_folder(workplace, precision), tokens_file(workplace, precision)
    quantize = ("mixtral-build", "quantize", workplace.model, checkpoint, "--precision", precision)
    _must(workplace.command(*quantize, log=f"{precision}-quantize", timeout_s=QUANTIZE_TIMEOUT_S), "quantising")
    for runtime, gpu, target in (("pytorch", "cpu", folder / "pytorch"), ("tensorrt-llm", workplace.build_for, engine)):
        build = ("mixtral-build", "engine", checkpoint, target, "--runtime", runtime, "--gpu", gpu, *LIMITS)
        done = workplace.command(*build, log=f"{precision}-{runtime}-build", timeout_s=BUILD_TIMEOUT_S)
        _must(done, f"building the {runtime} engine", _remarks(workplace.model, target) if target == engine else ())
    for target, result in ((folder / "pytorch", expected), (engine, found)):
        done = workplace.program("generate", target, result, timeout_s=GENERATE_TIMEOUT_S)
        _must(done, f"generating with the {target.name} engine")
    return judge(*(json.loads(path.read_text(encoding="utf-8")) for path in (expected, found)))


def judge(expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Outcome:
    """Both as `programs/generate.py` writes them: for each prompt its text and "tokens"."""
    lines, early = [], 0
    for ours, theirs in zip(expected, found, strict=True):
        agreed = agreement(ours["tokens"], theirs["tokens"])
        longest = max(len(ours["tokens"]), len(theirs["tokens"]))
        if agreed == longest:
            lines.append(f"{ours['prompt']!r}: all {longest} tokens are equal")
            continue
        early += agreed < MUST_AGREE
        a, b = (tokens[agreed] if agreed < len(tokens) else "the end" for tokens in (ours["tokens"], theirs["tokens"]))
        lines.append(f"{ours['prompt']!r}: {agreed} of {longest} tokens are equal, then {b} instead of {a}")
    total = sum(max(len(a["tokens"]), len(b["tokens"])) for a, b in zip(expected, found, strict=True))
    same = sum(agreement(a["tokens"], b["tokens"]) for a, b in zip(expected, found, strict=True))
    lines.append(f"before the first difference: {same} of {total} tokens, {same / max(1, total):.0%}")
    if early:
        raise Failed(
            *lines,
            advice=f"the first {MUST_AGREE} tokens of a prompt must agree: this engine says other than the model. "
            f"Do not serve it; send the JSON report",
        )
    return Outcome.passed(*lines)


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _must(done: Finished, what: str, remarks: Sequence[str] = ()) -> None:
    if done.status != 0:
        raise Failed(
            f"{what} ended with status {done.status}, its last lines:", *done.last_lines, *remarks, advice=BUILD_ADVICE
        )


def _remarks(model_dir: Path, engine_dir: Path) -> list[str]:
    """The end of the builder's own log, which `mixtral-build` keeps beside an engine that was not finished. And the
    demo model is smaller than anything that NVIDIA tests, so its shape may be the reason."""
    log = engine_dir.with_name(f"{engine_dir.name}.{LOG_NAME}")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return [
        *(line for line in lines[-LAST_LINES:] if line.strip()),
        f"this model has head size {head} and hidden size {config['hidden_size']}; if the library refuses that shape, "
        f"the check says nothing about Mixtral 8x7B: give a larger one with --model",
    ]
