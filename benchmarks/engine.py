"""Our PyTorch engine on a CPU beside llama.cpp (Q8_0), transformers (bfloat16) and what the memory allows.

All run on the same weights: a random Mixtral of 0.8 billion parameters, made on first use, and the demo model. Each
lives in a process of its own; they take turns in every round, each with other prompts, and each turn waits until the
machine is idle. A short round before them warms up. `int8 steps` is the model alone, without the engine's scheduler and
threads. Then the served int8 engine and the engine alone take turns with the same requests.

Example: make bench-engine BENCH_FLAGS="--model random --rounds 9"
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from demo_server import ROOT
from engine_models import MAX_BATCH, MODELS, Prepared, prepare
from engine_picture import draw
from engine_report import LLAMA, MEMORY, OURS, PRECISIONS, TRANSFORMERS, Measurement, Phase, ratios, table
from engine_served import measure_served
from idle_gate import IdleGate
from machine import describe, slug
from peers.interface import PeerUnavailable, Prompt, Settings, figures
from peers.peer_process import PeerFailed, PeerProcess
from step_bytes import step_bytes

RUNNERS = (*OURS, LLAMA, TRANSFORMERS, MEMORY)
KINDS = {**dict.fromkeys(OURS, "engine"), "int8 steps": "steps"}  # of `peer_process`
WARM_UP_STEPS, WARM_UP_TOKENS = 2, 512
SERVED_ROUNDS = 3  # at most
CONTEXT_TOKENS = 32  # of each sequence before it is decoded
BREAKDOWN = ROOT / "benchmarks" / "step_breakdown.py"
BREAKDOWN_OF = ("--batch", "1", "--batch", "16", "--repeat", "8")
PACKAGES = ("torch", "transformers", "numpy", "llama-cpp-python", "gguf")


def prompts(count: int, length: int, vocabulary: int, rng: random.Random) -> list[Prompt]:
    """Random ids, so that no prefix was ever seen before; none is special or a byte."""
    return [[rng.randrange(300, vocabulary) for _ in range(length)] for _ in range(count)]


@contextmanager
def open_runners(
    names: Sequence[str], model: Prepared, threads: int, skipped: dict[str, str]
) -> Iterator[dict[str, PeerProcess]]:
    """Those that run here; why the others do not goes into `skipped`."""
    weights = {LLAMA: model.gguf, TRANSFORMERS: None, MEMORY: model.engines["int8"]}
    found: dict[str, PeerProcess] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixtral-engine-")))
        for name in names:
            own = weights[name] if name in weights else model.engines[PRECISIONS[name]]
            settings = Settings(model.hugging_face, threads, MAX_BATCH, model.max_tokens, folder / slug(name), own)
            try:
                found[name] = PeerProcess(name, settings, KINDS.get(name))
                stack.callback(found[name].close)
            except (PeerUnavailable, PeerFailed) as error:
                skipped[name] = str(error)
                click.echo(f"{name} is left out: {error}", err=True)
        yield found


def measure(
    model: Prepared,
    runners: dict[str, PeerProcess],
    cases: Sequence[tuple[Phase, int]],
    steps: int,
    rounds: int,
    gate: IdleGate,
) -> list[Measurement]:
    measured: dict[tuple[Phase, int, str], list[float]] = {(*case, name): [] for case in cases for name in runners}
    rng = random.Random(0)
    for round_ in range(rounds + 1):
        begun, warm_up = time.perf_counter(), round_ == 0
        for phase, size in cases:
            if warm_up and phase == "prefill" and size > WARM_UP_TOKENS:
                continue
            for name, runner in runners.items():
                decoded = WARM_UP_STEPS if warm_up else steps
                count, length, outputs = (size, CONTEXT_TOKENS, decoded + 1) if phase == "decode" else (1, size, 1)
                batch = prompts(count, length, model.config.vocab_size, rng)
                if not warm_up:
                    gate.wait()
                found = figures(runner.generate(batch, outputs), length)
                if not warm_up:
                    speed = found.decode_tokens_per_s if phase == "decode" else size / found.ttft_s
                    measured[phase, size, name].append(speed)
        click.echo(f"{model.name}: round {round_}/{rounds}, {time.perf_counter() - begun:.0f} s", err=True)
    return [
        Measurement(model.name, *key, speeds, step_bytes(model.config, PRECISIONS[key[2]], key[1]))
        for key, speeds in measured.items()
    ]


def break_down(engine: Path, threads: int) -> dict[str, Any]:
    """What `step_breakdown.py` says of an engine directory. Raises subprocess.CalledProcessError."""
    command: list[str | Path] = [sys.executable, BREAKDOWN, engine, "--threads", str(threads), "--json", *BREAKDOWN_OF]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS, show_default=True)
@click.option("--runner", "names", multiple=True, type=click.Choice(RUNNERS), default=RUNNERS, show_default=True)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1, MAX_BATCH), default=(1, 4, 8, 16))
@click.option("--prefill", "lengths", multiple=True, type=click.IntRange(1, 2048), default=(128, 512, 2048))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1, 128), default=16, show_default=True, help="Decode steps of a turn.")
@click.option("--threads", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--idle-wait", default=20.0, show_default=True, help="Longest wait for an idle machine, s, each turn.")
@click.option("--served/--no-served", default=True, show_default=True, help="The served engine, too.")
@click.option("--cache", type=click.Path(path_type=Path), default=ROOT / "checkpoints" / "benchmark")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(
    models: tuple[str, ...],
    names: tuple[str, ...],
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    rounds: int,
    steps: int,
    threads: int,
    idle_wait: float,
    served: bool,
    cache: Path,
    results: Path,
) -> None:
    machine = describe(PACKAGES)
    gate = IdleGate(idle_wait)
    precisions = tuple(dict.fromkeys(["int8", *(PRECISIONS[name] for name in names if name in OURS)]))
    measurements: list[Measurement] = []
    loading: list[dict[str, Any]] = []
    through_server: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    descriptions: dict[str, dict[str, Any]] = {}
    breakdown: dict[str, Any] = {}
    target = results / slug(str(machine["processor"]))

    def save() -> dict[str, Any]:
        """Writes what there is so far: what comes later may fail."""
        report: dict[str, Any] = {
            "machine": machine,
            "settings": {
                "rounds": rounds,
                "steps": steps,
                "context_tokens": CONTEXT_TOKENS,
                "threads": threads,
                "idle_wait_s": idle_wait,
            },
            "idle": {"waited_s": gate.waited_s, "turns_idle": gate.passed, "turns_not_idle": gate.refused},
            "runners": descriptions,
            "skipped": skipped,
            "measurements": [asdict(one) for one in measurements],
            "ratios": [asdict(one) for one in ratios(measurements)],
            "breakdown": breakdown,
            "loading": loading,
            "served": through_server,
        }
        target.mkdir(parents=True, exist_ok=True)
        (target / "engine.json").write_text(json.dumps(report, indent=1) + "\n")
        return report

    for name in models:
        model = prepare(name, precisions, cache)
        fitting = sorted({min(length, model.max_tokens - 1) for length in lengths})
        cases: list[tuple[Phase, int]] = [("decode", n) for n in batches]
        cases += [("prefill", n) for n in fitting]
        try:
            with open_runners(names, model, threads, skipped) as runners:
                measurements += measure(model, runners, cases, steps, rounds, gate)
                for runner in runners.values():
                    descriptions[runner.name] = runner.description
                    loading.append({"model": name, "runner": runner.name, **asdict(runner.usage())})
            if not breakdown:  # the first model's is shown
                gate.wait()
                breakdown[name] = break_down(model.engines["int8"], threads)
            save()
            if served:
                through_server += [
                    asdict(one) for one in measure_served(model, threads, min(rounds, SERVED_ROUNDS), gate)
                ]
        except PeerFailed as error:
            raise click.ClickException(str(error)) from error
    report = save()
    draw(report, target)
    click.echo(table(report))


if __name__ == "__main__":
    main()
