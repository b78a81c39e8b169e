"""What it costs to turn tokens into text as they come, by length of the output: ours beside the two usual ways.

`DecodeStream` is tokenizers' own; a full decode of the output so far on every call is what a detokenizer without state
must do. Ours is also measured with stop strings, and as `postprocessing` calls it, by tokens per response: that fit is
the serial cost of the one process that all streams pass. Processor time, one thread, ways in alternation.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import describe, slug
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from mixtral_runtime.tokenizer import Encoder
from mixtral_serving.detokenizer import Detokenizer
from mixtral_serving.prompt import PromptBuilder
from mixtral_serving.stream_chunk import ChunkExtras, pack_chunk, unpack_chunk
from mixtral_serving.stream_context import StreamContext
from mixtral_serving.text_stream import TextStream
from mixtral_serving.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "tiny-mixtral"
LENGTHS = (128, 512, 2048, 8192, 32768)  # tokens of an output
GROUPS = (1, 8, 64)  # tokens per call
STOPS = ("</answer>", "\nUser:", "###", "\n\n\n")  # none is in the text
FULL_DECODES = 64  # per output, evenly spread: all of them would take hours
RESPONSE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
RESPONSES = 4000


def text_of_ids(builder: PromptBuilder, count: int) -> list[int]:
    """`count` tokens of this project's own pages, over and over."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    ids = [i for i in Encoder(builder.tokenizer).text(text.replace("###", "")) if i]
    return list(islice(cycle(ids), count))


def groups_of(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def ours(vocabulary: Vocabulary, groups: list[list[int]], stops: Sequence[str]) -> int:
    """Nanoseconds for the whole output."""
    stream = TextStream(vocabulary, groups[0][:1], stops)
    start = time.process_time_ns()
    for ids in groups:
        stream.push(ids)
    spent = time.process_time_ns() - start
    assert not stream.stopped
    return spent


def decode_stream(backend: Tokenizer, groups: list[list[int]]) -> int:
    stream = DecodeStream(ids=groups[0][:1], skip_special_tokens=True)
    start = time.process_time_ns()
    for ids in groups:
        stream.step(backend, ids)
    return time.process_time_ns() - start


def full_decode(backend: Tokenizer, groups: list[list[int]]) -> int:
    """Some of the calls stand for all: call k decodes k groups."""
    ids = [token for group in groups for token in group]
    calls = len(groups)
    ends = sorted({round(calls * (n + 1) / FULL_DECODES) or 1 for n in range(FULL_DECODES)})
    start = time.process_time_ns()
    for end in ends:
        backend.decode(ids[: end * len(groups[0])])
    return (time.process_time_ns() - start) * calls // len(ends)


def ways(builder: PromptBuilder) -> dict[str, Callable[[list[list[int]]], int]]:
    backend = builder.tokenizer.backend_tokenizer
    return {
        "ours": lambda groups: ours(builder.vocabulary, groups, ()),
        "ours, 4 stop strings": lambda groups: ours(builder.vocabulary, groups, STOPS),
        "DecodeStream": lambda groups: decode_stream(backend, groups),
        "full decode": lambda groups: full_decode(backend, groups),
    }


def measure_ways(builder: PromptBuilder, rounds: int) -> list[dict[str, Any]]:
    found: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(rounds):
        for length in LENGTHS:
            ids = text_of_ids(builder, length)
            for size in GROUPS:
                groups = groups_of(ids, size)
                for name, spend in ways(builder).items():
                    found.setdefault((name, length, size), []).append(spend(groups) / length / 1000)
    return [
        {"way": name, "output_tokens": length, "tokens_per_call": size, "us_per_token": round(statistics.median(us), 3)}
        for (name, length, size), us in found.items()
    ]


def measure_responses(builder: PromptBuilder, rounds: int, stops: Sequence[str]) -> dict[str, Any]:
    """What `postprocessing` does with a response in its own code, from the tensor to the outputs. The backend's part,
    which hands tensors over, is in the results of `streaming.py`."""
    by_size: dict[int, float] = {}
    for size in RESPONSE_TOKENS:
        spent = []
        for _ in range(rounds):
            detokenizer = Detokenizer(builder.vocabulary)
            context = StreamContext([1], list(stops), return_num_output_tokens=True).pack()
            groups = groups_of(text_of_ids(builder, size * RESPONSES), size)
            chunks = [pack_chunk(7, groups[0], ChunkExtras(context))]
            chunks += [pack_chunk(7, ids) for ids in groups[1:]]
            start = time.process_time_ns()
            for packed in chunks:
                detokenizer.handle(*unpack_chunk(packed))
            spent.append((time.process_time_ns() - start) / len(chunks) / 1000)
        by_size[size] = statistics.median(spent)
    per_token, per_response = np.polyfit(list(by_size), list(by_size.values()), 1)
    return {
        "stop_strings": len(stops),
        "us_by_tokens": {str(size): round(us, 2) for size, us in by_size.items()},
        "us_per_response": round(float(per_response), 2),
        "us_per_token": round(float(per_token), 3),
    }


def table(measured: list[dict[str, Any]]) -> str:
    """Microseconds per token: a line for each way and group size, a column for each length."""
    lines = [f"{'':32s}" + "".join(f"{length:>10d}" for length in LENGTHS)]
    for size in GROUPS:
        for way in dict.fromkeys(entry["way"] for entry in measured):
            us = [e["us_per_token"] for e in measured if (e["way"], e["tokens_per_call"]) == (way, size)]
            lines.append(f"{way + f', {size} a call':32s}" + "".join(f"{value:10.2f}" for value in us))
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A model's folder.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--note", default="", help="What else the machine did meanwhile.")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the folder of this hardware in results/.")
def main(tokenizer: Path, rounds: int, note: str, output: Path | None) -> None:
    builder = PromptBuilder.load(tokenizer)
    machine = describe(("tokenizers",))
    report: dict[str, Any] = {
        "machine": machine,
        "measured_at": time.strftime("%Y-%m-%d"),
        "note": note,
        "vocabulary": len(builder.vocabulary.token_bytes),
        "rounds": rounds,
        "ways": measure_ways(builder, rounds),
        "responses": [measure_responses(builder, rounds, stops) for stops in ((), STOPS)],
    }
    path = output or ROOT / "benchmarks" / "results" / slug(str(machine["processor"])) / "detokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(table(report["ways"]))
    for fit in report["responses"]:
        click.echo(
            f"a response, {fit['stop_strings']} stop strings: "
            f"{fit['us_per_response']} µs and {fit['us_per_token']} µs a token"
        )
    click.echo(f"written: {path}", err=True)


if __name__ == "__main__":
    main()
