"""Our server beside its peers: the same prompts and the same model, in one go and in alternation.

Each round runs every peer at every concurrency, one after the other; prompts are texts cut to one length of token ids,
other ones in every round, and all generate greedily to one length. The first round warms up. Before that every peer's
tokens are judged by transformers: a peer that computes something else is not measured.

Example: make bench-peers PEERS_FLAGS="--rounds 5"
"""

import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import click
from machine import describe, slug
from peers.interface import Figures, PeerUnavailable, Prompt, Settings, figures
from peers.peer_process import MODULES, PeerFailed, PeerProcess
from peers.picture import draw
from peers.report import METRICS, Verdict, ratios, table
from transformers import AutoTokenizer

from mixtral_build.texts import read_texts

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "tiny-mixtral"
EXISTING = click.Path(exists=True, path_type=Path)
OURS = "server"
JUDGE = "transformers"
# Nats per token, mean. Rounding to Q8_0 costs 0.005 on the demo model; rotary rows in the wrong order, gate and up
# exchanged, or experts in another order cost 4 to 10.
MOST_REGRET = 0.05


class Prompts:
    """Pieces of a text, each beginning elsewhere, so that no prefix cache can help."""

    def __init__(self, model: Path, text: Path, tokens: int, seed: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        self._ids = [i for piece in read_texts(text) for i in tokenizer(piece, add_special_tokens=False).input_ids]
        self._bos: int = tokenizer.bos_token_id
        self._tokens = tokens
        self._starts = list(range(len(self._ids) - tokens))
        random.Random(seed).shuffle(self._starts)

    def take(self, count: int) -> list[Prompt]:
        """Raises UsageError when the text is used up."""
        if len(self._starts) < count:
            raise click.UsageError(f"--text has {len(self._ids)} tokens, too few for prompts of {self._tokens}")
        begins = [self._starts.pop() for _ in range(count)]
        return [[self._bos, *self._ids[begin : begin + self._tokens - 1]] for begin in begins]


def open_peers(
    names: Sequence[str], settings: Settings, stack: ExitStack
) -> tuple[dict[str, PeerProcess], dict[str, str]]:
    """(those that run, why the others do not)."""
    peers, skipped = {}, {}
    for name in names:
        try:
            peers[name] = PeerProcess(name, replace(settings, folder=settings.folder / name))
            stack.callback(peers[name].close)
            click.echo(f"{name}: {peers[name].description['weights']}", err=True)
        except (PeerUnavailable, PeerFailed) as error:
            skipped[name] = str(error)
            click.echo(f"{name} is left out: {error}", err=True)
    return peers, skipped


def judge(peers: dict[str, PeerProcess], prompts: Sequence[Prompt], output_tokens: int) -> dict[str, Verdict]:
    """By the likelihoods of transformers. Raises PeerFailed for a peer that computes something else."""
    verdicts = {}
    for name, peer in peers.items():
        regrets = peers[JUDGE].regrets(prompts, peer.generate(prompts, output_tokens).tokens)
        verdict = Verdict(
            same=sum(regret == 0 for regret in regrets) / len(regrets),
            mean_regret_nats=statistics.mean(regrets),
            worst_regret_nats=max(regrets),
        )
        if verdict.mean_regret_nats > MOST_REGRET:
            raise PeerFailed(f"{name} computes something else: {verdict}, the most mean regret is {MOST_REGRET}")
        click.echo(f"{name}: {verdict.same:.1%} of its tokens would be the judge's too", err=True)
        verdicts[name] = verdict
    return verdicts


def measure(
    peers: dict[str, PeerProcess], prompts: Prompts, concurrencies: Sequence[int], tokens: tuple[int, int], rounds: int
) -> dict[tuple[str, int], list[Figures]]:
    """By peer and concurrency, one element a round. tokens: of a prompt and of an output."""
    measured: dict[tuple[str, int], list[Figures]] = {(name, n): [] for n in concurrencies for name in peers}
    for round_ in range(rounds + 1):
        for concurrency in concurrencies:
            batch = prompts.take(concurrency)
            for name, peer in peers.items():
                found = figures(peer.generate(batch, tokens[1]), tokens[0])
                if round_:  # the first round warms up
                    measured[name, concurrency].append(found)
        click.echo(f"round {round_}/{rounds}", err=True)
    return measured


@click.command(help=__doc__)
@click.option("--model", type=EXISTING, default=DEMO)
@click.option("--text", type=EXISTING, default=DEMO / "heldout.jsonl", help="Texts that prompts are cut from.")
@click.option("--peer", "names", multiple=True, type=click.Choice([name for name in MODULES if name != OURS]))
@click.option("--concurrency", "concurrencies", multiple=True, type=click.IntRange(1), default=(1, 4, 8))
@click.option("--input-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--output-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="For arithmetic, of each peer.")
@click.option("--seed", default=0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(
    model: Path,
    text: Path,
    names: tuple[str, ...],
    concurrencies: tuple[int, ...],
    input_tokens: int,
    output_tokens: int,
    rounds: int,
    threads: int,
    seed: int,
    results: Path,
) -> None:
    prompts = Prompts(model, text, input_tokens, seed)
    wanted = [OURS, JUDGE, *(name for name in names or MODULES if name not in (OURS, JUDGE))]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixtral-peers-")))
        settings = Settings(model.resolve(), threads, max(concurrencies), input_tokens + output_tokens, folder)
        peers, skipped = open_peers(wanted, settings, stack)
        if missing := {OURS, JUDGE} & skipped.keys():
            raise click.ClickException(f"nothing can be compared without {missing.pop()}")
        try:
            verdicts = judge(peers, prompts.take(max(concurrencies)), output_tokens)
            measured = measure(peers, prompts, concurrencies, (input_tokens, output_tokens), rounds)
        except PeerFailed as error:
            raise click.ClickException(str(error)) from error
    machine = describe(("torch", "transformers", "numpy"))
    report = {
        "machine": machine,
        "settings": {
            "model": model.name,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "rounds": rounds,
            "threads": threads,
            "seed": seed,
        },
        "peers": {name: peer.description for name, peer in peers.items()},
        "skipped": skipped,
        "correctness": {name: asdict(verdict) for name, verdict in verdicts.items()},
        "metrics": METRICS,
        "measurements": [
            {"peer": name, "concurrency": concurrency, "rounds": [asdict(found) for found in rounds_]}
            for (name, concurrency), rounds_ in measured.items()
        ],
        "ratios": [asdict(ratio) for ratio in ratios(measured, OURS)],
    }
    target = results / slug(str(machine["processor"]))
    target.mkdir(parents=True, exist_ok=True)
    (target / "peers.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, target)
    click.echo(table(report))


if __name__ == "__main__":
    main()
