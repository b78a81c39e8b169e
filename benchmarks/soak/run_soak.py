"""Mixed traffic on a real server for minutes: every token checked, and nothing may grow.

In rounds: clients ask with and without streaming, cancel, run into deadlines and stop strings, ask badly, ask in bursts
above the queue limit, and are killed; then all is quiet and what the server still holds is looked at. By default the
engine is the synthetic one, whose tokens are known; another engine's greedy answers are first asked for one by one.

\b
Example: make soak SOAK_FLAGS="--minutes 60"
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from machine import describe, processor, slug
from make_engine import LIMITS
from soak_picture import draw
from soak_questions import MAX_TOKENS, random_prompt
from soak_samples import Sample, Watch, held
from soak_traffic import Tally
from soak_verdict import verdict
from synthetic_server import READY_S, REPOSITORY, synthetic_server

from mixtral_client import AsyncClient
from mixtral_client.generation import GenerationOptions
from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.errors import MixtralError
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

HERE = Path(__file__).resolve().parent
ROUND_S = 30.0
MIN_ROUNDS = 3  # short soaks have shorter ones
SAMPLE_S = 5.0
CLIENTS, STREAMS, BURST = 2, 12, 60
SMALL = EngineLimits(
    max_batch_size=32,
    max_input_len=LIMITS.max_input_len,
    max_seq_len=LIMITS.max_seq_len,
    max_num_tokens=2048,
    max_queue_size=16,  # so that a burst is refused in part
)
IDLE_TIMEOUT_S = 60.0
REST_S = 30.0  # within which all must be given back
LOG_LINES = 20
POOL = 40  # questions to an engine whose answers are not known


@dataclass
class Soak:
    """A soak under way. Clients are processes of their own, so that they can be killed."""

    watch: Watch
    job: dict[str, Any]
    seed: int
    started: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    killed: int = 0

    def run(self, seconds: float, round_s: float) -> None:
        """Rounds until the time is over."""
        numbers = random.Random(self.seed)
        rounds = round(seconds / round_s)
        for number in range(1, rounds + 1):
            self._round(round_s, numbers)
            self._rest()
            asked, wrong = sum(self.tally.asked.values()), sum(self.tally.wrong.values())
            server = self.samples[-1].processes["server"].anonymous / 2**20
            click.echo(
                f"round {number} of {rounds}: {asked} requests, {wrong} wrong, server {server:.0f} MiB", err=True
            )

    def _round(self, seconds: float, numbers: random.Random) -> None:
        clients = [self._start(numbers, seconds) for _ in range(CLIENTS)]
        end, victim, kill_at = time.monotonic() + seconds, None, 0.0
        next_sample = time.monotonic() + min(SAMPLE_S, seconds / 2)
        try:
            while (now := time.monotonic()) < end:
                if victim is None:
                    # It needs a second to begin. Nothing that it asks is refused: see KILLED_SHARE.
                    victim = self._start(numbers, 3600.0, burst=0, bad=False)
                    kill_at = now + numbers.uniform(1.5, 4.0)
                elif now >= kill_at:
                    self._kill(victim)
                    victim = None
                if now >= next_sample:
                    self.samples.append(self._sample(resting=False))
                    next_sample = now + SAMPLE_S
                time.sleep(0.05)
            for client in clients:
                self._take(client)
        finally:
            for client in clients:
                client.kill()
            if victim is not None:
                self._kill(victim)

    def _start(self, numbers: random.Random, seconds: float, **more: Any) -> "subprocess.Popen[str]":
        job = self.job | {"seed": numbers.getrandbits(32), "seconds": seconds} | more
        command = [sys.executable, str(HERE / "soak_traffic.py"), json.dumps(job)]
        folders = [str(HERE), str(HERE.parent / "synthetic"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def _kill(self, client: "subprocess.Popen[str]") -> None:
        client.kill()
        client.communicate()
        self.killed += 1

    def _take(self, client: "subprocess.Popen[str]") -> None:
        try:
            out, _ = client.communicate(timeout=IDLE_TIMEOUT_S * 2)
            self.tally.merge(json.loads(out))
        except subprocess.TimeoutExpired:
            self.tally.blame(["hang"], "a client did not come to its end")
        except ValueError:
            self.tally.blame(["client"], f"a client ended with exit code {client.returncode} and no account")

    def _rest(self) -> None:
        """Waits until nothing is held, or long enough; what is held then is in the sample."""
        end = time.monotonic() + REST_S
        time.sleep(1.0)  # gauges are published four times a second
        while held(self.watch.tables()) and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(0.5)  # connections of clients that are gone are closed
        self.samples.append(self._sample(resting=True))

    def _sample(self, *, resting: bool) -> Sample:
        return self.watch.sample(time.monotonic() - self.started, resting=resting)


def soak(process: ServerProcess, engine: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Soaks a server that is ready. Returns the report; its `failures` are empty when the soak was passed."""
    address = process.address
    assert process.process is not None
    url = f"{address.local_host}:{address.grpc_port}"
    watch = Watch(process.process.pid, f"http://{address.local_host}:{address.metrics_port}/metrics")
    with tempfile.TemporaryDirectory() as folder:
        pool = None
        if not (engine / "synthetic.json").exists():
            pool = Path(folder) / "pool.json"
            pool.write_text(json.dumps(asyncio.run(ask_alone(url, seed))))
        job = {
            "url": url,
            "tokenizer": str(engine / "tokenizer"),
            "pool": str(pool) if pool else None,
            "streams": STREAMS,
            "burst": BURST,
            "bad": True,
            "idle_timeout_s": IDLE_TIMEOUT_S,
        }
        run = Soak(watch, job, seed)
        failures = []
        try:
            run.run(minutes * 60, min(ROUND_S, minutes * 60 / MIN_ROUNDS))
        except (psutil.Error, OSError) as error:
            failures.append(f"the server or one of its processes is gone: {error}")
    samples = [asdict(sample) for sample in run.samples]
    return {
        "machine": describe(("tritonclient",)),
        "minutes": minutes,
        "seed": seed,
        **run.tally.to_json(),
        "killed_clients": run.killed,
        "failures": failures + verdict(samples, run.tally.wrong, run.tally.asked, run.killed),
        "samples": samples,
    }


async def ask_alone(url: str, seed: int) -> list[dict[str, list[int]]]:
    """Questions with the answers that a server gives while nothing else runs."""
    numbers, questions = random.Random(seed), []
    options = GenerationOptions(max_tokens=MAX_TOKENS, ignore_eos=True, return_output_ids=True)
    async with AsyncClient(url) as client:
        for _ in range(POOL):
            prompt = random_prompt(numbers)
            answer = await client.generate(input_ids=prompt, options=options)
            questions.append({"prompt": prompt, "tokens": answer.token_ids})
    return questions


@contextlib.contextmanager
def server_of(engine: Path | None, folder: Path) -> Iterator[tuple[ServerProcess, Path]]:
    """A ready server of the engine, or of a synthetic one in `folder`."""
    with (folder / "log").open("w") as log:
        if engine is None:
            settings = {"step_s": 0.01, "jitter": 0.5, "prefill_token_s": 1e-5}
            with synthetic_server(folder / "engine", settings, SMALL, log=log) as process:
                yield process, folder / "engine"
            return
        with ServerProcess(REPOSITORY, engine, free_address(), log=log) as process:
            process.wait_until_ready(READY_S)
            self_test(process.address)
            yield process, engine


@click.command(help=__doc__)
@click.option(
    "--minutes", default=15.0, show_default=True, type=click.FloatRange(0.1, 24 * 60), help="Time of traffic."
)
@click.option("--engine", type=click.Path(exists=True, path_type=Path), help="Engine directory; default: synthetic.")
@click.option("--seed", default=0, show_default=True, help="Of the traffic.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="JSON report, the picture beside it; default: among the results."
)
def main(minutes: float, engine: Path | None, seed: int, output: Path | None) -> None:
    output = output or HERE.parent / "results" / slug(processor()) / "soak.json"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with server_of(engine, Path(folder)) as (process, engine_dir):
                report = soak(process, engine_dir, minutes, seed)
            if report["failures"]:
                log = (Path(folder) / "log").read_text(encoding="utf-8", errors="replace").splitlines()
                click.echo("\n".join(["the end of the server's log:", *log[-LOG_LINES:]]), err=True)
        except MixtralError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report) + "\n")
    draw(report, output.with_suffix(".png"))
    for failure in report["failures"]:
        click.echo(f"failed: {failure}", err=True)
    for example in report["examples"]:
        click.echo(f"example: {example}", err=True)
    asked, outcome = sum(report["asked"].values()), "failed" if report["failures"] else "passed"
    click.echo(
        f"{outcome}: {asked} requests, {report['tokens']} tokens checked, {report['killed_clients']} clients killed"
    )
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
