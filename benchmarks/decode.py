"""Decode speed of the PyTorch engine on the demo model, int8 and 16 bit, beside transformers on the same weights.

All three run in one process, alternating, `--rounds` times; the table and the picture show the median and the spread.
A step is one decode step of the whole batch; prefill is not counted.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import matplotlib
import torch
from demo_server import MODEL, ROOT, build_engine
from machine import describe, slug
from transformers import MixtralForCausalLM

from mixtral_runtime.engine import Engine, Request
from mixtral_runtime.open_engine import open_engine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PROMPT_TOKENS = 64
PEER = "transformers"


@dataclass(frozen=True)
class Measurement:
    """tokens_per_s: all sequences of the batch together, one figure per round."""

    runner: str
    batch: int
    tokens_per_s: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.tokens_per_s)


def prompts(batch: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(300, 1000, (batch, PROMPT_TOKENS), generator=generator).tolist()


def decode_with_engine(engine: Engine, batch: int, steps: int) -> float:
    """Tokens/s between the first and the last decode step in which every sequence was there."""
    for ids in prompts(batch):
        engine.submit(Request(ids, steps + 1, end_id=None))
    produced, first, last, live = 0, 0.0, 0.0, batch
    seen: set[int] = set()
    while live:
        for output in engine.poll(5.0):
            last = time.perf_counter()
            if len(seen) == batch:
                produced += len(output.token_ids)
            else:
                seen.add(output.id)
                first = last
            live -= output.final
    return produced / (last - first)


def decode_with_transformers(model: MixtralForCausalLM, batch: int, steps: int) -> float:
    """Tokens/s of greedy decode steps with the library's own KV cache."""
    with torch.inference_mode():
        out = model(torch.tensor(prompts(batch)), use_cache=True)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        begun = time.perf_counter()
        for _ in range(steps):
            out = model(tokens, past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        return batch * steps / (time.perf_counter() - begun)


def measure(batches: list[int], steps: int, rounds: int) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: open_engine(build_engine(Path(folder), name)) for name in ("int8", "16bit")}
        peer = MixtralForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
        runners: dict[str, Callable[[int], float]] = {
            name: partial(decode_with_engine, engine, steps=steps) for name, engine in engines.items()
        }
        runners[PEER] = partial(decode_with_transformers, peer, steps=steps)
        figures: dict[tuple[str, int], list[float]] = {(name, batch): [] for batch in batches for name in runners}
        for round_ in range(rounds + 1):
            for (name, batch), values in figures.items():
                value = runners[name](batch)
                if round_:  # the first round warms up
                    values.append(value)
            click.echo(f"round {round_}/{rounds}", err=True)
        for engine in engines.values():
            engine.close()
    return [Measurement(name, batch, values) for (name, batch), values in figures.items()]


def draw(measurements: list[Measurement], caption: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    batches = sorted({m.batch for m in measurements})
    runners = list(dict.fromkeys(m.runner for m in measurements))
    width = 0.8 / len(runners)
    for place, runner in enumerate(runners):
        rows = [m for m in measurements if m.runner == runner]
        x = [batches.index(m.batch) + (place - (len(runners) - 1) / 2) * width for m in rows]
        low = [m.median - min(m.tokens_per_s) for m in rows]
        high = [max(m.tokens_per_s) - m.median for m in rows]
        axes.bar(x, [m.median for m in rows], width, yerr=[low, high], capsize=3, label=runner)
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_xlabel("sequences decoded together")
    axes.set_ylabel("output tokens/s, median with range")
    axes.set_title(f"Decode on the demo model\n{caption}", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=130)


@click.command(help=__doc__)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1, 16), default=(1, 4, 16), show_default=True)
@click.option("--steps", default=48, show_default=True, help="Decode steps per round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(batches: tuple[int, ...], steps: int, rounds: int, results: Path) -> None:
    machine = describe(("torch", "transformers", "numpy"))
    measurements = measure(list(batches), steps, rounds)
    folder = results / slug(str(machine["processor"]))
    folder.mkdir(parents=True, exist_ok=True)
    medians = {(m.runner, m.batch): m.median for m in measurements}
    rows = [asdict(m) | {"ratio": m.median / medians[PEER, m.batch]} for m in measurements]
    settings = {"model": MODEL.name, "prompt_tokens": PROMPT_TOKENS, "steps": steps, "rounds": rounds, "peer": PEER}
    report = {"machine": machine, "settings": settings, "measurements": rows}
    (folder / "decode.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(measurements, f"{machine['processor']}, {machine['cores']} cores", folder / "decode.png")
    click.echo(f"{'batch':>5}  {'runner':<13}{'tokens/s':>9}  {'range':>15}  ratio to {PEER}")
    for m in measurements:
        spread = f"{min(m.tokens_per_s):.0f}-{max(m.tokens_per_s):.0f}"
        click.echo(
            f"{m.batch:>5}  {m.runner:<13}{m.median:>9.0f}  {spread:>15}  {m.median / medians[PEER, m.batch]:.2f}"
        )


if __name__ == "__main__":
    main()
