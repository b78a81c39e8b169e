"""NVIDIA's AIPerf through the OpenAI gateway beside `mixtral bench` straight to Triton, on the same loads and prompts:
do they agree on the time to first token and the time per output token?

On the synthetic engine, a step every 20 ms, so that the engine is the same whatever the two tools take of the
processor; or on a server that runs already (--triton). Both tools run in alternation, round by round.

python benchmarks/aiperf_agreement.py
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from machine import describe, slug
from tables import Rows, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarking.md"
TABLE = re.compile(r"\| load \| TTFT p50, bench \|.*?\n(?=\n)", re.DOTALL)
AIPERF = ROOT / ".tools" / "aiperf-0.13.0" / "bin" / "aiperf"
MODEL = ROOT / "models" / "tiny-mixtral"
ENGINE = {"step_s": 0.02, "prefill_request_s": 0.005, "prefill_token_s": 0.0002}
PROMPT_CHARACTERS = 300
OUTPUT_TOKENS = 32
RUN_S = 300


@dataclass(frozen=True, slots=True)
class Load:
    """concurrency: one closed loop for each. rate: requests per second of a Poisson open loop. requests: of each."""

    concurrency: tuple[int, ...] = (1, 4, 16)
    rate: float = 4.0
    requests: int = 48

    @property
    def names(self) -> list[str]:
        return [*(f"concurrency {users}" for users in self.concurrency), f"Poisson, {self.rate:g}/s"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over requests, in milliseconds. token_ms: `mixtral bench`'s TPOT, AIPerf's inter-token latency."""

    ttft_ms: float
    token_ms: float
    input_tokens: float
    output_tokens: float


def write_prompts(path: Path, field: str) -> Path:
    """The beginnings of the held-out stories, one JSON object with this field a line."""
    records = [json.loads(line) for line in (MODEL / "heldout.jsonl").read_text("utf-8").split("\n") if line]
    texts = [
        record["text"].removeprefix("<s> ")[:PROMPT_CHARACTERS] for record in records if "INST" not in record["text"]
    ]
    path.write_text("".join(json.dumps({field: text.rstrip()}) + "\n" for text in texts), "utf-8")
    return path


def run_bench(triton: str, load: Load, folder: Path) -> list[Figures]:
    """`mixtral bench` on each of the loads. Raises subprocess.CalledProcessError."""
    prompts = write_prompts(folder / "prompts.jsonl", "prompt")
    common = ["--prompts", str(prompts), "--output-tokens", str(OUTPUT_TOKENS), "--ignore-eos", "--url", triton]
    closed = ["--concurrency", ",".join(map(str, load.concurrency)), "--requests", str(load.requests)]
    opened = ["--rate", f"{load.rate:g}", "--duration", f"{load.requests / load.rate:g}", "--warmup", "0"]
    figures = []
    for options in (closed, opened):
        command = [
            sys.executable,
            "-m",
            "mixtral_client",
            "bench",
            *options,
            *common,
            "--output",
            str(folder / "bench"),
        ]
        _run(command)
        for point in json.loads((folder / "bench").read_text())["points"]:
            summary, requests = point["summary"], [r for r in point["requests"] if r["measured"] and not r["error"]]
            figures.append(
                Figures(
                    summary["ttft_s"]["p50"] * 1000,
                    summary["tpot_s"]["p50"] * 1000,
                    sum(r["input_tokens"] for r in requests) / len(requests),
                    sum(r["output_tokens"] for r in requests) / len(requests),
                )
            )
    return figures


def run_aiperf(gateway: str, load: Load, folder: Path) -> list[Figures]:
    """AIPerf on the same. gateway: its URL. Raises subprocess.CalledProcessError, and AssertionError when requests
    failed."""
    prompts = write_prompts(folder / "prompts-aiperf.jsonl", "text")
    common = [
        *("--model", "mixtral", "--url", gateway, "--endpoint-type", "completions", "--streaming"),
        *("--tokenizer", str(MODEL), "--use-server-token-count"),
        *("--input-file", str(prompts), "--custom-dataset-type", "single-turn"),
        *("--extra-inputs", f"max_tokens:{OUTPUT_TOKENS}", "ignore_eos:true", "temperature:0"),
        *("--request-count", str(load.requests), "--workers-max", "2", "--random-seed", "0"),
        *("--ui", "none", "--no-server-metrics", "--no-gpu-telemetry", "--export-level", "summary"),
    ]
    sweep, poisson = folder / "sweep", folder / "poisson"
    users = ",".join(map(str, load.concurrency))
    warm_up = ["--warmup-request-count", str(max(load.concurrency))]
    _run([str(AIPERF), "profile", *common, *warm_up, "--concurrency", users, "--artifact-dir", str(sweep)])
    rate = ["--request-rate", f"{load.rate:g}", "--arrival-pattern", "poisson"]
    _run([str(AIPERF), "profile", *common, *rate, "--artifact-dir", str(poisson)])
    several = len(load.concurrency) > 1
    folders = [sweep / f"concurrency_{one}" if several else sweep for one in load.concurrency]
    return [_read_aiperf(one / "profile_export_aiperf.json", load.requests) for one in (*folders, poisson)]


def _read_aiperf(path: Path, requests: int) -> Figures:
    report = json.loads(path.read_text())
    assert report["request_count"]["avg"] == requests, report["error_summary"]
    assert not report["error_summary"], report["error_summary"]
    return Figures(
        report["time_to_first_token"]["p50"],
        report["inter_token_latency"]["p50"],
        report["usage_prompt_tokens"]["avg"],
        report["usage_completion_tokens"]["avg"],
    )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S)
    if done.returncode:
        click.echo(done.stdout[-3000:], err=True)
        done.check_returncode()


@contextmanager
def gateway_before(triton: str) -> Iterator[str]:
    """The URL of a gateway before this server."""
    command = [sys.executable, "-m", "mixtral_gateway", "--triton", triton, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


@contextmanager
def synthetic(folder: Path) -> Iterator[str]:
    from synthetic_server import synthetic_server

    with (folder / "log").open("w") as log, synthetic_server(folder / "engine", ENGINE, log=log) as server:
        yield f"127.0.0.1:{server.address.grpc_port}"


def measure(triton: str, load: Load, rounds: int) -> list[dict[str, Any]]:
    """For each load its name and the figures of both tools in each round."""
    points: list[dict[str, Any]] = [{"load": name, "bench": [], "aiperf": []} for name in load.names]
    with gateway_before(triton) as gateway:
        for number in range(rounds):
            click.echo(f"round {number + 1} of {rounds}", err=True)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                tools = {"bench": run_bench(triton, load, folder), "aiperf": run_aiperf(gateway, load, folder)}
            for tool, figures in tools.items():
                for point, found in zip(points, figures, strict=True):
                    point[tool].append(asdict(found))
    return points


def agreement_table(report: dict[str, Any]) -> str:
    """Of `aiperf-agreement.json`: medians over the rounds, with their range; differences are of the same round."""
    rows: Rows = [
        ("load", "TTFT p50, bench", "AIPerf", "difference", "TPOT p50, bench", "AIPerf's inter-token latency", "ratio")
    ]
    for point in report["points"]:
        ours, theirs = point["bench"], point["aiperf"]
        pairs = list(zip(ours, theirs, strict=True))
        rows.append(
            (
                point["load"],
                _spread([one["ttft_ms"] for one in ours], "ms"),
                _spread([one["ttft_ms"] for one in theirs], "ms"),
                _spread([b["ttft_ms"] - a["ttft_ms"] for a, b in pairs], "ms"),
                _spread([one["token_ms"] for one in ours], "ms"),
                _spread([one["token_ms"] for one in theirs], "ms"),
                _spread([b["token_ms"] / a["token_ms"] for a, b in pairs], "", 3),
            )
        )
    return markdown(rows)


def _spread(values: Sequence[float], unit: str, digits: int = 1) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} {unit}".strip() + (f" [{low}, {high}]" if len(values) > 1 else "")


@click.command(help=__doc__)
@click.option("--triton", metavar="HOST:PORT", help="A running server's gRPC address.  [default: the synthetic engine]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Result file; without it the table in docs/benchmarking.md is written.",
)
def main(triton: str | None, rounds: int, out: Path | None) -> None:
    if not AIPERF.is_file():
        raise click.ClickException("AIPerf is missing; scripts/setup_external_tools.sh installs it")
    load = Load()
    with tempfile.TemporaryDirectory() as name:
        if triton is None:
            with synthetic(Path(name)) as started:
                points = measure(started, load, rounds)
        else:
            points = measure(triton, load, rounds)
    machine = describe(("tritonclient", "grpcio", "uvicorn")) | {"aiperf": AIPERF.parents[1].name.rpartition("-")[2]}
    engine = ENGINE if triton is None else None
    report = {"machine": machine, "engine": engine, "load": asdict(load), "points": points}
    path = out or RESULTS / slug(str(machine["processor"])) / "aiperf-agreement.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    table = agreement_table(report)
    if out is None:
        PAGE.write_text(TABLE.sub(lambda found: table, PAGE.read_text(), count=1))
    click.echo(table, nl=False)


if __name__ == "__main__":
    main()
