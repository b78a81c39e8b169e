"""What the OpenAI gateway adds to Triton's own gRPC, on the synthetic engine: time to the first token and to each later
one, tokens/s, and the gateway's processor time for each chunk that it passes on.

Both ways are measured in alternation against one server. Slow streams, which the machine carries easily, show what is
added to each token. Ten times as fast ones, and such without a pace, show what passes when the processor is the limit
and tokens go together in a chunk; they are long, so that their requests cost little beside their tokens. Server,
gateway and load share this machine: a throughput is a share of it, not a server's own. `make bench-gateway` runs it.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import psutil
from gateway_load import Stream, prompts, run
from gateway_picture import draw
from machine import describe, slug
from make_engine import LIMITS
from synthetic_emissions import read_emissions
from synthetic_server import synthetic_server

RESULTS = Path(__file__).parent / "results"
EMISSIONS = "emissions"


@dataclass(frozen=True, slots=True)
class Load:
    """step_s: of the engine, 0 is as fast as it goes. repeats: measurements of both ways in each round."""

    streams: int
    step_s: float
    tokens: int
    repeats: int = 1


LOADS = (
    Load(1, 0.02, 20, repeats=15),
    Load(64, 0.05, 160),
    Load(256, 0.2, 40),
    Load(64, 0.005, 1200),
    Load(256, 0.02, 300),
    Load(64, 0, 12_000),
    Load(256, 0, 3_500),
)


@contextmanager
def running_gateway(triton: str) -> Iterator[tuple[int, psutil.Process]]:
    command = [sys.executable, "-m", "mixtral_gateway", "--triton", triton, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as gateway:
        assert gateway.stdout is not None
        try:
            yield int(gateway.stdout.readline().rsplit(":", 1)[1]), psutil.Process(gateway.pid)
        finally:
            gateway.terminate()


def chunks_read(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        found = re.search(r"^mixtral_gateway_events_total (\S+)$", page.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def figures(streams: list[Stream], tokens: int, emissions: Path) -> dict[str, Any]:
    """Of one measurement. lag: from a token's making to its arrival. Where the path joined tokens it is not known which
    came with which chunk, so of such a stream only the last one counts."""
    lags = []
    for stream in streams:
        (emission,) = read_emissions(emissions, stream.prompt)
        counted = tokens if len(stream.chunks_ns) == tokens else 1
        made = emission.times_ns.tolist()[-counted:]
        lags += [(arrived - at) / 1e6 for arrived, at in zip(stream.chunks_ns[-counted:], made, strict=True)]
    begun, ended = min(s.sent_ns for s in streams), max(s.chunks_ns[-1] for s in streams)
    return {
        "ttft_ms": [(stream.chunks_ns[0] - stream.sent_ns) / 1e6 for stream in streams],
        "lag_p50_ms": statistics.median(lags),
        "chunks": sum(len(stream.chunks_ns) for stream in streams),
        "tokens_per_s": len(streams) * tokens / ((ended - begun) / 1e9),
    }


def run_load(load: Load, rounds: int) -> dict[str, Any]:
    limits = replace(LIMITS, max_batch_size=load.streams)
    settings = {"step_s": load.step_s, "emissions": EMISSIONS}
    taken: dict[str, list[dict[str, Any]]] = {"direct": [], "gateway": []}
    fresh = prompts()
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as log,
        synthetic_server(Path(folder) / "engine", settings, limits, log=log) as server,
        running_gateway(f"127.0.0.1:{server.address.grpc_port}") as (port, process),
    ):
        triton, emissions = f"127.0.0.1:{server.address.grpc_port}", Path(folder) / "engine" / EMISSIONS
        ports = {"direct": None, "gateway": port}
        for number in range(-1, rounds * load.repeats):  # the first is a warm-up
            tokens = load.tokens if number >= 0 else 5
            for way in ports if number % 2 else reversed(ports):
                chunks, before = chunks_read(port), cpu_s(process)
                streams = run(triton, ports[way], list(islice(fresh, load.streams)), tokens)
                spent, chunks = cpu_s(process) - before, chunks_read(port) - chunks
                if number >= 0:
                    cost = {"gateway_cpu_s": spent, "gateway_chunks": chunks} if way == "gateway" else {}
                    taken[way].append(figures(streams, tokens, emissions) | cost)
    return asdict(load) | taken | {"summary": summary(load, taken)}


def summary(load: Load, taken: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the measurements; each share is of two that followed one another."""
    pairs = list(zip(taken["direct"], taken["gateway"], strict=True))
    ttfts = {way: statistics.median(ms for one in taken[way] for ms in one["ttft_ms"]) for way in taken}
    lags = {way: statistics.median(one["lag_p50_ms"] for one in taken[way]) for way in taken}
    return {
        "ttft_p50_ms": ttfts,
        "added_ttft_p50_ms": ttfts["gateway"] - ttfts["direct"],
        "lag_p50_ms": lags,
        "added_lag_p50_ms": lags["gateway"] - lags["direct"],
        "tokens_per_s": {way: statistics.median(one["tokens_per_s"] for one in taken[way]) for way in taken},
        "throughput_share": [b["tokens_per_s"] / a["tokens_per_s"] for a, b in pairs],
        # Of each round: the system counts processor time in steps too coarse for one measurement of one stream.
        "cpu_us_per_chunk": [
            1e6 * sum(one["gateway_cpu_s"] for one in part) / sum(one["gateway_chunks"] for one in part)
            for part in zip(*[iter(taken["gateway"])] * load.repeats, strict=True)
        ],
    }


@click.command(help=__doc__)
@click.option("--rounds", default=2, show_default=True, help="Measurements of each load, both ways in alternation.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Result file. Default: benchmarks/results/PROCESSOR/gateway.json"
)
def main(rounds: int, out: Path | None) -> None:
    machine = describe(("uvicorn", "uvloop", "httptools", "h2", "tritonclient", "nvidia-pytriton"))
    points = []
    for load in LOADS:
        pace = f"a step every {load.step_s * 1000:g} ms" if load.step_s else "no pace"
        click.echo(f"{load.streams} streams of {load.tokens} tokens, {pace}", err=True)
        points.append(run_load(load, rounds))
        click.echo(f"  {json.dumps(points[-1]['summary'])}", err=True)
    report = {"machine": machine, "measured_at": time.strftime("%Y-%m-%d"), "rounds": rounds, "points": points}
    path = out or RESULTS / slug(str(machine["processor"])) / "gateway.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, path.with_suffix(".png"))
    click.echo(path)


if __name__ == "__main__":
    main()
