"""What the path around an engine costs: known tokens of the synthetic engine, from the step that makes them to the
client.

For several numbers of streams and lengths of steps, behind a real server on this machine: tokens delivered of those
made, tokens in a response, and the time from the end of the step to the client, whose share of the processor counts in.
Every token is checked. Beside it, how many tokens the engine's own step loop makes when nothing paces it.

PYTHONPATH=benchmarks python benchmarks/synthetic/streaming_path.py
"""

import asyncio
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import describe, slug
from make_engine import LIMITS, PLUGIN_FOLDER
from synthetic_emissions import EmissionWriter, read_emissions
from synthetic_engine import SyntheticEngine
from synthetic_server import synthetic_server
from synthetic_settings import SyntheticSettings
from synthetic_tokens import FIRST_TOKEN, expected_tokens

from mixtral_client import AsyncClient, GenerationOptions
from mixtral_runtime.engine import Request

RESULTS = PLUGIN_FOLDER.parent / "results"
LOADS = ((1, 0.02), (16, 0.02), (64, 0.03), (256, 0.05))  # streams, seconds of a step
RUN_S = 6.0
UNPACED_TOKENS = 8000  # of each stream
EMISSIONS = "emissions.bin"


def prompt(number: int) -> list[int]:
    return [1, FIRST_TOKEN + number, FIRST_TOKEN]


def step_loop(streams: int, folder: Path) -> dict[str, Any]:
    """The engine alone, unpaced, polled by this thread, its emissions recorded."""
    limits = replace(LIMITS, max_batch_size=streams)
    engine = SyntheticEngine(limits, 1536, SyntheticSettings(step_s=0), EmissionWriter(folder / EMISSIONS))
    started = time.monotonic()
    left = {engine.submit(Request(prompt(number), UNPACED_TOKENS)): UNPACED_TOKENS for number in range(streams)}
    while any(left.values()):
        for output in engine.poll(1.0):
            left[output.id] -= len(output.token_ids)
    elapsed = time.monotonic() - started
    engine.close()
    return {"streams": streams, "tokens_per_s": streams * UNPACED_TOKENS / elapsed}


async def stream(client: AsyncClient, number: int, tokens: int) -> tuple[list[int], int]:
    """When each token arrived, in nanoseconds, and the number of responses. Fails when a token is not the expected."""
    options = GenerationOptions(max_tokens=tokens, ignore_eos=True, return_output_ids=True)
    arrivals: list[int] = []
    said: list[int] = []
    responses = 0
    async for chunk in client.stream(input_ids=prompt(number), options=options):
        now = time.monotonic_ns()
        if chunk.token_ids:
            responses += 1
            said += chunk.token_ids
            arrivals += [now] * len(chunk.token_ids)
    if said != expected_tokens(prompt(number), tokens):
        raise RuntimeError(f"stream {number} brought other tokens than the engine made")
    return arrivals, responses


async def all_streams(url: str, streams: int, tokens: int) -> list[tuple[list[int], int]]:
    async with AsyncClient(url) as client:
        return await asyncio.gather(*(stream(client, number, tokens) for number in range(streams)))


def path(streams: int, step_s: float, folder: Path) -> dict[str, Any]:
    tokens = round(RUN_S / step_s)
    limits = replace(LIMITS, max_batch_size=streams, max_queue_size=streams)
    with synthetic_server(folder / "engine", {"step_s": step_s, "emissions": EMISSIONS}, limits) as server:
        found = asyncio.run(all_streams(f"127.0.0.1:{server.address.grpc_port}", streams, tokens))
        emitted = [read_emissions(folder / "engine" / EMISSIONS, prompt(number))[0] for number in range(streams)]
    made = np.array([emission.times_ns for emission in emitted])  # [streams, tokens]
    arrived = np.array([arrivals for arrivals, _ in found])
    added_ms = (arrived - made) / 1e6
    steady = slice(tokens // 5, None)  # streams begin one after the other
    seconds = (arrived.max() - made.min()) / 1e9
    return {
        "streams": streams,
        "step_s": step_s,
        "tokens_per_stream": tokens,
        "offered_tokens_per_s": streams / step_s,
        "delivered_tokens_per_s": streams * tokens / seconds,
        "made_tokens_per_s": streams * tokens / ((made.max() - made.min()) / 1e9),
        "tokens_per_response": streams * tokens / sum(responses for _, responses in found),
        "added_ms": {
            name: float(np.percentile(added_ms[:, steady], at))
            for name, at in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
    }


@click.command(help=__doc__)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(results: Path) -> None:
    machine = describe(("numpy", "tritonclient", "nvidia-pytriton"))
    report: dict[str, Any] = {"machine": machine, "step_loop": [], "path": []}
    with tempfile.TemporaryDirectory() as name:
        for streams, _ in LOADS:
            report["step_loop"].append(one := step_loop(streams, Path(name)))
            click.echo(f"{streams:>4} streams, step loop alone: {one['tokens_per_s']:,.0f} tokens/s")
        for streams, step_s in LOADS:
            report["path"].append(one := path(streams, step_s, Path(name)))
            added = ", ".join(f"{at} {value:.1f}" for at, value in one["added_ms"].items())
            click.echo(
                f"{streams:>4} streams, steps of {step_s * 1000:.0f} ms: {one['delivered_tokens_per_s']:,.0f} of "
                f"{one['offered_tokens_per_s']:,.0f} tokens/s, {one['tokens_per_response']:.2f} a response, "
                f"added ms {added}"
            )
    folder = results / slug(str(machine["processor"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "streaming-path.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
