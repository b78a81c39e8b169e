"""What the choice of the next tokens costs in each step: `python benchmarks/sampling.py`.

CPU time of one thread, the least of many steps, so that a busy machine changes little. Logits are random: `peaked` as a
trained model's, whose few best tokens decide, and `flat`, where the whole vocabulary has to be sorted.
"""

import json
import time
from dataclasses import replace

import click
import torch

from mixtral_runtime.engine import Request, SamplingParams
from mixtral_runtime.pytorch.sampler import Sampler
from mixtral_runtime.pytorch.sequence import Sequence

NUCLEUS = SamplingParams(temperature=0.8, top_p=0.95)
KINDS = {
    "greedy": SamplingParams(),
    "top_k": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
    "top_p": NUCLEUS,
    "temperature": SamplingParams(temperature=1.0),
    "penalties": replace(NUCLEUS, repetition_penalty=1.1, frequency_penalty=0.2),
}
PROMPT, OUTPUT = 300, 200  # tokens so far, which the penalties look at


def random_logits(shape: str, batch: int, vocab: int) -> torch.Tensor:
    logits = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(batch))
    if shape == "peaked":
        logits *= 4
        logits[:, :20] += 8
    return logits


def step_ms(logits: torch.Tensor, params: SamplingParams, steps: int) -> float:
    """The least CPU time of a step, the tokens' way back into what the sampler keeps included."""
    batch, vocab = logits.shape
    sampler = Sampler(batch, vocab, logits.device)
    sequences = []
    for number in range(batch):
        prompt = [(7 * i + number) % vocab for i in range(PROMPT)]
        sequences.append(Sequence(number, Request(prompt, OUTPUT + steps, replace(params, seed=number)), None))
        sequences[-1].tokens += [(11 * i * i + number) % vocab for i in range(OUTPUT)]
    times = []
    for _ in range(steps):
        start = time.thread_time()
        tokens = sampler.sample(logits, sequences)
        tokens.tolist()
        sampler.append(tokens)
        times.append(time.thread_time() - start)
    return min(times) * 1e3


@click.command(help=__doc__)
@click.option("--vocab", default=32000, show_default=True, help="Tokens that are chosen from.")
@click.option("--steps", default=10, show_default=True, help="Steps that are measured of each kind.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@torch.inference_mode()
def main(vocab: int, steps: int, as_json: bool) -> None:
    torch.set_num_threads(1)
    batches = (1, 16, 64)
    found: dict[str, dict[str, list[float]]] = {}
    for shape in ("peaked", "flat"):
        logits = [random_logits(shape, batch, vocab) for batch in batches]
        found[shape] = {name: [step_ms(rows, params, steps) for rows in logits] for name, params in KINDS.items()}
    if as_json:
        click.echo(json.dumps({"vocab": vocab, "batches": batches, "step_ms": found}))
        return
    click.echo("| ms per step at batch | " + " | ".join(str(batch) for batch in batches) + " |")
    click.echo("| --- |" + " --- |" * len(batches))
    for shape, kinds in found.items():
        for name, times in kinds.items():
            click.echo(f"| {name}, {shape} | " + " | ".join(f"{time:.2f}" for time in times) + " |")


if __name__ == "__main__":
    main()
