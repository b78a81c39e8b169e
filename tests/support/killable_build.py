"""Builds that run in a process of their own and die by SIGKILL."""

import multiprocessing
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

JOURNAL_NAME = "journal.jsonl"
TIMEOUT_S = 60
# Forked from a process that has imported everything and computed nothing: a child starts in milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mixtral_build.quantize", "mixtral_build.engine", "transformers"])


def start_quantize(
    model_dir: Path, target: Path, precision: str, options: dict[str, Any], pause_at: int | None = None
) -> ForkServerProcess:
    """pause_at: lines of the journal at which it waits to be killed, in the midst of the next tensor."""
    return _start(_quantize, model_dir, target, precision, options, pause_at)


def start_engine(checkpoint_dir: Path, target: Path) -> ForkServerProcess:
    return _start(_engine, checkpoint_dir, target)


def kill_at(process: ForkServerProcess, target: Path, lines: int, delay_s: float = 0) -> bool:
    """SIGKILL, `delay_s` after the journal has that many lines. False when the target was there before."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.is_alive() and _lines(target) < lines and time.monotonic() < deadline:
        pass  # a step takes about a millisecond
    time.sleep(delay_s)
    process.kill()
    process.join(TIMEOUT_S)
    return not target.exists()


def _lines(target: Path) -> int:
    """Of the journal of a build."""
    try:
        return (target.parent / f".{target.name}.partial" / JOURNAL_NAME).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _start(function: Any, *arguments: Any) -> ForkServerProcess:
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def _quantize(model_dir: Path, target: Path, precision: str, options: dict[str, Any], pause_at: int | None) -> None:
    from mixtral_build.quantize import quantize_model

    def progress(done: int, total: int) -> None:
        while pause_at is not None and _lines(target) >= pause_at:
            time.sleep(1)

    quantize_model(model_dir, target, precision, progress=progress, **options)


def _engine(checkpoint_dir: Path, target: Path) -> None:
    from mixtral_build.engine import build_pytorch_engine
    from mixtral_build.limits import LimitOverrides
    from mixtral_runtime.devices import find_device

    build_pytorch_engine(checkpoint_dir, target, device=find_device("cpu"), limits=LimitOverrides())
