"""The whole path beside the engine alone: the same requests over gRPC from a real Triton, and through the seam."""

import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
from engine_models import MAX_BATCH, Prepared
from idle_gate import IdleGate
from peers.interface import Figures, Settings, figures
from peers.peer_process import PeerProcess

STREAMS = (1, 4, 16)
INPUT_TOKENS, OUTPUT_TOKENS = 128, 32
SERVER, ENGINE = "server", "engine"


@dataclass(frozen=True, slots=True)
class Served:
    """`streams` requests at once, one element a round. tokens_per_s: decode, all streams together. ttft_s: median of
    the streams."""

    model: str
    streams: int
    server: list[Figures] = field(default_factory=list)
    engine: list[Figures] = field(default_factory=list)


def measure_served(
    model: Prepared, threads: int, rounds: int, gate: IdleGate, streams: Sequence[int] = STREAMS
) -> list[Served]:
    """The int8 engine, served and alone, in alternation. Raises PeerFailed."""
    found = [Served(model.name, count) for count in streams]
    rng = random.Random(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixtral-served-")))
        paths = {}
        for name in (SERVER, ENGINE):
            settings = Settings(
                model.hugging_face, threads, MAX_BATCH, model.max_tokens, folder / name, model.engines["int8"]
            )
            paths[name] = PeerProcess(name, settings)
            stack.callback(paths[name].close)
        for round_ in range(rounds + 1):
            for one in found:
                for name, path in paths.items():
                    batch = [
                        [rng.randrange(300, model.config.vocab_size) for _ in range(INPUT_TOKENS)]
                        for _ in range(one.streams)
                    ]
                    if round_:  # the first round warms up
                        gate.wait()
                    got = figures(path.generate(batch, OUTPUT_TOKENS), INPUT_TOKENS)
                    if round_:
                        (one.server if name == SERVER else one.engine).append(got)
            click.echo(f"{model.name}: served, round {round_}/{rounds}", err=True)
    return found
