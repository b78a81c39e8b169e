"""Where the time of a step goes, by operation: `python benchmarks/step_breakdown.py ENGINE_DIR`.

The model's forward pass, lm_head and the choice of the likeliest token, without scheduler and server. Every operation's
time is its least over the repetitions, so that a busy machine shows what it does when it is let; what is left of the
whole step is the Python between the operations. With one thread the times are those of its CPU, without waiting.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixtral_runtime.checkpoint import Checkpoint
from mixtral_runtime.kernels import cpu_path
from mixtral_runtime.plan import blocks_for
from mixtral_runtime.pytorch.batch import BatchBuilder
from mixtral_runtime.pytorch.kv_cache import KvCache
from mixtral_runtime.pytorch.model import MixtralModel

Parts = dict[str, float]

SHOWN = 0.005  # of the step: smaller parts are left out of the table


class Steps:
    """One step, repeated: `batch` sequences with `context` tokens in the cache take `length` more."""

    def __init__(self, model: MixtralModel, cache: KvCache, batch: int, context: int, length: int) -> None:
        self._model, self._cache = model, cache
        per_sequence = blocks_for(context + length)
        # Scattered, as after a while of serving.
        order = torch.randperm(cache.total_blocks, generator=torch.Generator().manual_seed(0)).tolist()
        self._tables = [order[i * per_sequence : (i + 1) * per_sequence] for i in range(batch)]
        vocab = model.config.vocab_size
        self._tokens = [[(7 * i * i + 13 * n + 1) % vocab for i in range(length)] for n in range(batch)]
        self._context = context

    @torch.inference_mode()
    def __call__(self) -> list[int]:
        builder = BatchBuilder()
        for token_ids, table in zip(self._tokens, self._tables, strict=True):
            builder.add(token_ids, self._context, table)
        batch = builder.build(self._model.device)
        hidden = self._model.forward(batch, self._cache)
        chosen: list[int] = self._model.logits(hidden[batch.last_rows]).argmax(-1).tolist()
        return chosen


class Clocked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the time inside each operation, by name, matrices with their size."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self.parts: Parts = defaultdict(float)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        started = self._clock()
        result = func(*args, **(kwargs or {}))
        spent = self._clock() - started
        name = func.name().split("::")[-1].split(".")[0]
        if name.endswith("_linear"):
            name += f" {'x'.join(map(str, args[1].shape))}"
        self.parts[name] += 1e3 * spent
        return result


def measure(steps: Callable[[], object], repeat: int, clock: Callable[[], float]) -> tuple[float, Parts]:
    """The least time of a whole step and of each of its parts, in milliseconds."""
    steps()
    whole, parts = float("inf"), dict[str, float]()
    for _ in range(repeat):
        started = clock()
        steps()
        whole = min(whole, 1e3 * (clock() - started))
        with Clocked(clock) as clocked:
            steps()
        for name, spent in clocked.parts.items():
            parts[name] = min(parts.get(name, spent), spent)
    return whole, parts


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 16), show_default=True)
@click.option("--context", type=int, default=512, show_default=True, help="Tokens in the cache before a decode step.")
@click.option("--prefill", type=int, default=512, show_default=True, help="Tokens of the prefill step.")
@click.option("--repeat", type=int, default=20, show_default=True)
@click.option("--threads", type=int, default=torch.get_num_threads(), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    directory: Path, batches: tuple[int, ...], context: int, prefill: int, repeat: int, threads: int, as_json: bool
) -> None:
    torch.set_num_threads(threads)
    model = MixtralModel.load(Checkpoint.open(directory), "cpu")
    cache = model.new_cache(max(max(batches) * blocks_for(context + 1), blocks_for(prefill)))
    kinds = {f"decode, batch {batch}, context {context}": (batch, context, 1) for batch in batches}
    kinds[f"prefill, {prefill} tokens"] = (1, 0, prefill)
    clock = time.thread_time if threads == 1 else time.perf_counter
    results: dict[str, tuple[float, Parts]] = {}
    for kind, (batch, before, length) in kinds.items():
        click.echo(kind, err=True)
        results[kind] = measure(Steps(model, cache, batch, before, length), repeat, clock)
    if as_json:
        steps = {kind: {"step_ms": whole, "parts_ms": parts} for kind, (whole, parts) in results.items()}
        click.echo(json.dumps({"kernels": cpu_path(), "threads": threads, "steps": steps}, indent=2))
        return
    for kind, (whole, parts) in results.items():
        click.echo(f"\n{kind}: {whole:.2f} ms ({cpu_path()}, {threads} threads)")
        shown = [*sorted(parts.items(), key=lambda part: -part[1]), ("between them", whole - sum(parts.values()))]
        for name, spent in shown:
            if spent >= SHOWN * whole:
                click.echo(f"  {spent:8.3f} ms {spent / whole:6.1%}  {name}")


if __name__ == "__main__":
    main()
