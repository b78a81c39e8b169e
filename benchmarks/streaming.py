"""The streaming path, from the engine's step to the client: how much it delivers and how much later.

The same synthetic engine behind three ways out: the engine model called directly, our ensemble, and an ensemble as it
is usually written (`streaming_plain/`); and a fourth, NVIDIA's published models, where `--nvidia` names a checkout of
them. They alternate in one run, `--rounds` times. `make bench-streaming` runs it.
"""

import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from machine import describe, slug
from streaming_measure import Point, Prompts, first_token_ms, measure
from streaming_nvidia import models_of
from streaming_paths import ROOT, Running, StreamingPath, paths, serve
from streaming_picture import draw

from mixtral_runtime.errors import InvalidArgument, MixtralError

PROMPT_TOKENS = 16
ADDED_P99_LIMIT_MS = 100.0
LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # streams
BUSY_STREAMS = 64  # from here on the detokenizer always has something to do
ENSEMBLES = ("ensemble", "plain ensemble")  # ours first, then what it is compared with; NVIDIA's where it is measured
TTFT_PROMPTS = (16, 512)  # tokens


@dataclass(frozen=True, slots=True)
class Settings:
    """step_s: of the paced engine. paced_s: seconds of a paced run. unpaced_tokens: per stream."""

    streams: tuple[int, ...]
    rounds: int
    step_s: float
    paced_s: float
    unpaced_tokens: int
    ttft_requests: int


def say(text: str) -> None:
    click.echo(text, err=True)


class Bench:
    """Servers are started for one repository and one pace at a time: two at once would share the processor."""

    def __init__(self, settings: Settings, paths: Sequence[StreamingPath], folder: Path) -> None:
        self._settings, self._paths, self._folder = settings, paths, folder
        self._starts = 0
        self._prompts: Prompts | None = None

    @contextmanager
    def server(self, path: StreamingPath, step_s: float) -> Iterator[Running]:
        self._starts += 1
        folder = self._folder / str(self._starts)
        folder.mkdir()
        with serve(path.repository, step_s, folder) as running:
            self._prompts = self._prompts or Prompts(folder / "engine" / "tokenizer", seed=1)
            self.measure(path, running, streams=4, tokens=20, step_s=step_s)  # warm-up
            yield running

    def measure(self, path: StreamingPath, running: Running, streams: int, tokens: int, step_s: float) -> Point:
        assert self._prompts is not None
        prompts = [self._prompts.make(PROMPT_TOKENS) for _ in range(streams)]
        return measure(path, running, prompts, tokens, step_s)

    def loads(self, step_s: float, tokens: int) -> list[Point]:
        """Each path at each number of streams."""
        points = []
        for path in self._paths:
            with self.server(path, step_s) as running:
                for streams in self._settings.streams:
                    points.append(self.measure(path, running, streams, tokens, step_s))
                    say(_line(points[-1]))
        return points

    def ensembles(self) -> list[StreamingPath]:
        """The paths that turn text into text."""
        return [path for path in self._paths if path.name != "engine"]

    def ladder(self, path: StreamingPath) -> list[Point]:
        """More and more streams until the lag is too long or grows; the last point is the first that fails, and fails
        again: once may be another program's doing."""
        step_s = self._settings.step_s
        tokens = int(self._settings.paced_s / step_s)
        points: list[Point] = []
        with self.server(path, step_s) as running:
            for streams in LADDER:
                point = self.measure(path, running, streams, tokens, step_s)
                say(_line(point))
                if not holds(point):
                    point = min(point, self.measure(path, running, streams, tokens, step_s), key=_lag)
                    say(_line(point))
                points.append(point)
                if not holds(point):
                    break
        return points

    def first_tokens(self) -> dict[str, dict[str, list[float]]]:
        """Milliseconds to the first token beside the engine's own, by path and prompt length."""
        found: dict[str, dict[str, list[float]]] = {}
        for path in self.ensembles():
            with self.server(path, 0.001) as running:
                assert self._prompts is not None
                found[path.name] = {
                    str(length): [
                        first_token_ms(path, running, self._prompts.make(length))
                        for _ in range(self._settings.ttft_requests)
                    ]
                    for length in TTFT_PROMPTS
                }
        return found


def _lag(point: Point) -> float:
    return max(point.added_p99_ms, point.lag_growth_ms)


def holds(point: Point) -> bool:
    """Whether the path carries this load: lag within the limit, and not growing."""
    return point.flat and point.added_p99_ms <= ADDED_P99_LIMIT_MS


def _line(point: Point) -> str:
    offered = "unpaced" if point.offered_tokens_per_s is None else f"{point.offered_tokens_per_s:.0f} offered"
    added = f"added p50 {point.added_p50_ms:7.2f}, p99 {point.added_p99_ms:7.2f} ms"
    rates = f"{point.delivered_tokens_per_s:7.0f} tokens/s, {point.responses_per_s:6.0f} responses/s"
    return f"{point.path:15s} {point.streams:4d} streams, {offered:>14s}: {rates}, {added}"


def run(settings: Settings, nvidia: Path | None, folder: Path) -> dict[str, Any]:
    """nvidia: the folder of its models."""
    bench = Bench(settings, paths(nvidia, folder), folder)
    rounds = []
    for number in range(settings.rounds):
        say(f"round {number + 1} of {settings.rounds}")
        paced = bench.loads(settings.step_s, int(settings.paced_s / settings.step_s))
        unpaced = bench.loads(0.0, settings.unpaced_tokens)
        ladders = {path.name: bench.ladder(path) for path in bench.ensembles()}
        rounds.append(
            {
                "paced": [point.to_json() for point in paced],
                "unpaced": [point.to_json() for point in unpaced],
                "ladders": {name: [point.to_json() for point in points] for name, points in ladders.items()},
                "highest_paced_tokens_per_s": {
                    name: max((p.offered_tokens_per_s or 0.0 for p in points if holds(p)), default=0.0)
                    for name, points in ladders.items()
                },
                "first_token_ms": bench.first_tokens(),
            }
        )
    return {"rounds": rounds, "summary": summary(rounds)}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the bars are about: one per round, and the ratios."""
    ours, plain = ENSEMBLES
    names = list(rounds[0]["highest_paced_tokens_per_s"])
    highest = [r["highest_paced_tokens_per_s"] for r in rounds]
    single = [p for r in rounds for p in r["paced"] if p["path"] == ours and p["streams"] == 1]
    return {
        "highest_paced_tokens_per_s": {name: [h[name] for h in highest] for name in names},
        "highest_paced_ratio": [h[ours] / h[plain] if h[plain] else None for h in highest],
        "one_stream_added_p50_ms": [p["added_p50_ms"] for p in single],
        "first_token_p50_ms": {
            name: {
                length: [statistics.median(r["first_token_ms"][name][length]) for r in rounds]
                for length in map(str, TTFT_PROMPTS)
            }
            for name in names
        },
        "postprocessing_cpu_us": [_detokenizer_cost(r) for r in rounds],
    }


def _detokenizer_cost(one_round: dict[str, Any]) -> dict[str, float]:
    """Processor microseconds of the detokenizer's process per response and per token, from the point with the fewest
    and that with the most tokens per response. Of the busy points alone: below them waking up is half of the cost."""
    busy = min(BUSY_STREAMS, max(p["streams"] for p in one_round["paced"]))
    points = [
        p for part in ("paced", "unpaced") for p in one_round[part] if p["path"] == "ensemble" and p["streams"] >= busy
    ]
    few = min(points, key=lambda p: p["tokens_per_response"])
    many = max(points, key=lambda p: p["tokens_per_response"])
    cost_few, cost_many = (float(p["cpu_us"].get("postprocessing", 0.0)) for p in (few, many))
    per_token = (cost_many - cost_few) / max(many["tokens_per_response"] - few["tokens_per_response"], 1e-9)
    return {"per_token": per_token, "per_response": cost_few - per_token * few["tokens_per_response"]}


@click.command(help=__doc__)
@click.option("--streams", default="1,16,64,256", show_default=True, help="Numbers of streams at once.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--step-ms", default=20.0, show_default=True, help="A paced engine's step.")
@click.option("--paced-s", default=6.0, show_default=True, help="Seconds of a paced run.")
@click.option("--unpaced-tokens", default=2000, show_default=True, help="Tokens per stream of an unpaced run.")
@click.option("--ttft-requests", default=60, show_default=True, help="Requests for the time to the first token.")
@click.option("--nvidia", type=click.Path(path_type=Path), help="A checkout with NVIDIA's models, measured as well.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the result; by hardware if not given.")
def main(
    streams: str,
    rounds: int,
    step_ms: float,
    paced_s: float,
    unpaced_tokens: int,
    ttft_requests: int,
    nvidia: Path | None,
    output: Path | None,
) -> None:
    try:
        models = None if nvidia is None else models_of(nvidia)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="--nvidia") from error
    if models is None:
        say("NVIDIA's models are left out: --nvidia takes a checkout of tensorrtllm_backend or TensorRT-LLM with them")
    gc.freeze()  # the load runs in this process: what was imported needs no more looking at
    settings = Settings(
        tuple(int(n) for n in streams.split(",")), rounds, step_ms / 1000, paced_s, unpaced_tokens, ttft_requests
    )
    hardware = describe(("nvidia-pytriton", "tritonclient", "numpy", "tokenizers"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = {"hardware": hardware, "settings": asdict(settings), **run(settings, models, Path(folder))}
    except MixtralError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    output = output or ROOT / "benchmarks" / "results" / slug(str(hardware["processor"]))
    output.mkdir(parents=True, exist_ok=True)
    (output / "streaming.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, output / "streaming.png")
    click.echo(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    sys.exit(main())
