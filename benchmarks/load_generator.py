"""What the load generator of `mixtral bench` carries: responses and tokens a second of one and several processes, and
the CPU time that each response costs it, against the synthetic engine behind a real Triton on the same machine.

Two workloads: long answers, where a request costs little beside its responses, and answers of one token, where it is
all request. The server's work is on the same cores, so it usually saturates first. The ceiling of one process is
therefore given twice: what was reached, and what a core's time would allow at the measured CPU time per response.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
from machine import describe, slug

sys.path.insert(0, str(Path(__file__).resolve().parent / "synthetic"))
from synthetic_server import synthetic_server

from mixtral_client.bench.division import Amount
from mixtral_client.bench.exchange import Target
from mixtral_client.bench.result import ClosedLoad
from mixtral_client.bench.runner import Generators
from mixtral_client.bench.workload import Lengths, SyntheticPrompts

RESULTS = Path(__file__).resolve().parent / "results"
STREAMS = 64
STEP_S = 0.005
VOCAB_SIZE = 1536
INPUT = Lengths(32, 32)
WORKLOADS = {"long answers": Lengths(256, 256), "one token": Lengths(1, 1)}


@dataclass(slots=True)
class Measurement:
    """One list entry a round. cpu_us: of all processes, per response. cpu_share: of the busiest process."""

    workload: str
    processes: int
    responses_per_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    cpu_share: list[float] = field(default_factory=list)
    lag_p99_ms: list[float] = field(default_factory=list)

    def add(self, target: Target, duration_s: float) -> None:
        source = SyntheticPrompts(INPUT, WORKLOADS[self.workload], 0.0, 0, VOCAB_SIZE)
        amount = Amount(duration_s=duration_s, warmup_requests=STREAMS)
        with Generators(target, self.processes) as generators:
            raw = generators.run(
                ClosedLoad(STREAMS), amount, source, ignore_eos=True, stopping=lambda: False, watch=lambda _: None
            )
        if raw.lost is not None or any(record.error for record in raw.records):
            raise click.ClickException(f"requests failed: {raw.lost or next(r.error for r in raw.records if r.error)}")
        use = raw.generator
        self.responses_per_s.append(use.responses / raw.duration_s)
        self.tokens_per_s.append(sum(record.output_tokens for record in raw.records) / raw.duration_s)
        self.cpu_us.append(1e6 * use.cpu_s / use.responses)
        self.cpu_share.append(use.cpu_share)
        self.lag_p99_ms.append(1e3 * use.lag_p99_s)


def table(measurements: list[Measurement]) -> str:
    heads = ("workload", "processes", "responses/s", "tokens/s", "CPU us/response", "busiest, core", "1 core allows")
    rows = [heads]
    for m in measurements:
        cpu_us = statistics.median(m.cpu_us)
        rows.append(
            (
                m.workload,
                str(m.processes),
                f"{statistics.median(m.responses_per_s):.0f}",
                f"{statistics.median(m.tokens_per_s):.0f}",
                f"{cpu_us:.0f} ({min(m.cpu_us):.0f} to {max(m.cpu_us):.0f})",
                f"{statistics.median(m.cpu_share):.0%}",
                f"{1e6 / cpu_us:.0f}/s",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


@click.command(help=__doc__)
@click.option("--processes", default="1,2", show_default=True, help="Numbers of generator processes.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, in alternation.")
@click.option("--duration", default=4.0, show_default=True, help="Seconds of each measurement.")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the folder of this hardware in results/.")
def main(processes: str, rounds: int, duration: float, output: Path | None) -> None:
    machine = describe(("mixtral-triton", "nvidia-pytriton", "grpcio", "tritonclient"))
    counts = [int(count) for count in processes.split(",")]
    measurements = [Measurement(workload, count) for workload in WORKLOADS for count in counts]
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("w") as log,
        synthetic_server(Path(folder) / "engine", {"step_s": STEP_S}, log=log) as server,
    ):
        target = Target(f"127.0.0.1:{server.address.grpc_port}")
        for number in range(rounds):
            for measurement in measurements:
                click.echo(f"round {number + 1}: {measurement.workload}, {measurement.processes} processes", err=True)
                measurement.add(target, duration)
    click.echo(f"{machine['processor']}, {machine['cores']} cores; {STREAMS} streams, steps of {STEP_S * 1000:g} ms")
    click.echo(table(measurements))
    path = output or RESULTS / slug(str(machine["processor"])) / "load-generator.json"
    report = {
        "machine": machine,
        "measured_at": time.strftime("%Y-%m-%d"),
        "streams": STREAMS,
        "step_s": STEP_S,
        "input_tokens": INPUT.low,
        "duration_s": duration,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(f"written: {path}", err=True)


if __name__ == "__main__":
    main()
