"""How long prompts take to become tokens on a real Triton, and how long others wait meanwhile.

The same questions for one and two instances of `preprocessing`, with the tokenizer's own parallelism on and off: a
prompt alone by its length, through `preprocessing` and through the whole ensemble (the synthetic engine answers one
token at once); a burst of short prompts; a short prompt that arrives while a long one is encoded; and what an instance
holds in memory. A server per variant, variants in alternation.
"""

import contextlib
import json
import os
import queue
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import tritonclient.grpc as grpc
from machine import describe, slug

sys.path.insert(0, str(Path(__file__).resolve().parent / "synthetic"))
from make_engine import MODEL, PLUGIN_FOLDER, TOKENIZER_FILES, make_engine

from mixtral_runtime.engine import EngineLimits
from mixtral_runtime.injection import PLUGIN_PATH
from mixtral_runtime.manifest import Manifest, describe_files
from mixtral_runtime.tokenizer import encode_prompt, load_tokenizer
from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = {16: 40, 512: 40, 4096: 15, 32768: 5}  # tokens of a prompt: how often it is measured
BURST = 64
BEHIND = 10  # short prompts sent behind a long one
HEAD_START_S = 0.005
LIMITS = EngineLimits(
    max_batch_size=256, max_input_len=33000, max_seq_len=65536, max_num_tokens=65536, max_queue_size=256
)


@dataclass(frozen=True, slots=True)
class Variant:
    """instances: of `preprocessing`. parallel: TOKENIZERS_PARALLELISM."""

    instances: int
    parallel: bool


VARIANTS = [Variant(instances, parallel) for instances in (1, 2) for parallel in (False, True)]


class Prompts:
    """Texts of this project's pages with a given number of tokens, each another one."""

    def __init__(self, folder: Path) -> None:
        """folder: of the tokenizer."""
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        pages = sorted((ROOT / "docs").glob("*.md"))
        self._words = " ".join(page.read_text(encoding="utf-8") for page in pages).split(" ")
        self._next = 0

    def make(self, tokens: int) -> str:
        self._next += 1
        start = self._next * 37 % len(self._words)
        words = self._words[start:] + self._words * (1 + tokens // len(self._words))
        text = " ".join(words[:tokens])  # at least so many tokens
        low, high = 0, len(text)
        while low < high:  # the longest beginning that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count(text[:middle]) <= tokens else (low, middle - 1)
        return text[:low]

    def count(self, text: str) -> int:
        return len(encode_prompt(self.tokenizer, text))


class Server:
    """The two ways in: `preprocessing` alone, and the ensemble up to its only token."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{process.address.grpc_port}")
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def tokenize(self, texts: list[str]) -> list[float]:
        """Sends all, each HEAD_START_S after the one before it when they are two; seconds until each was answered."""
        done: queue.Queue[tuple[int, float, Any]] = queue.Queue()
        sent = []
        for index, text in enumerate(texts):
            if index and len(texts) == 2:
                time.sleep(HEAD_START_S)
            sent.append(time.perf_counter())

            def answered(result: Any, error: Any, index: int = index) -> None:
                done.put((index, time.perf_counter(), error))

            inputs = [_tensor("QUERY", [[text.encode()]], "BYTES"), _tensor("REQUEST_OUTPUT_LEN", [[1]], "INT32")]
            self._client.async_infer("preprocessing", inputs, answered)
        spent = [0.0] * len(texts)
        for _ in texts:
            index, at, error = done.get(timeout=60)
            assert error is None, error
            spent[index] = at - sent[index]
        return spent

    def generate(self, texts: list[str]) -> list[float]:
        """Seconds until each has its token, in the order of the answers; all are sent at once."""
        start = time.perf_counter()
        for text in texts:
            inputs = [_tensor("text_input", [[text.encode()]], "BYTES"), _tensor("max_tokens", [[1]], "INT32")]
            self._client.async_stream_infer("ensemble", inputs)
        spent = []
        for _ in texts:
            _, error = self._answers.get(timeout=60)
            assert error is None, error
            spent.append(time.perf_counter() - start)
        return spent

    def memory(self) -> list[float]:
        """MiB that each instance of `preprocessing` alone holds."""
        stubs = [p for p in psutil.Process(self._process.pid).children() if "preprocessing" in " ".join(p.cmdline())]
        return [p.memory_full_info().uss / 2**20 for p in stubs]


def _tensor(name: str, values: list[list[Any]], datatype: str) -> grpc.InferInput:
    array = np.array(values, np.object_ if datatype == "BYTES" else np.int32)
    tensor = grpc.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def write_engine(folder: Path, prompts: Prompts) -> None:
    """The synthetic engine with the measured tokenizer in place of the demo model's."""
    make_engine(folder, {"step_s": 0.0}, LIMITS)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    names = [name for name in TOKENIZER_FILES if (prompts.folder / name).is_file()]
    for name in names:
        shutil.copyfile(prompts.folder / name, folder / "tokenizer" / name)
    manifest = Manifest.load(folder)
    replace(
        manifest,
        model=replace(manifest.model, vocab_size=len(prompts.tokenizer)),
        files=describe_files(folder, [f"tokenizer/{name}" for name in names]),
    ).write(folder)


@contextlib.contextmanager
def serve(variant: Variant, prompts: Prompts) -> Iterator[Server]:
    os.environ["TOKENIZERS_PARALLELISM"] = str(variant.parallel).lower()
    os.environ[PLUGIN_PATH] = str(PLUGIN_FOLDER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_engine(folder / "engine", prompts)
        repository = folder / "repository"
        shutil.copytree(ROOT / "model_repository", repository)
        config = repository / "preprocessing" / "config.pbtxt"
        head, _ = config.read_text().split("instance_group")
        config.write_text(f"{head}instance_group [ {{ kind: KIND_CPU count: {variant.instances} }} ]\n")
        with (
            (folder / "log").open("w") as log,
            ServerProcess(repository, folder / "engine", free_address(), log=log) as process,
        ):
            process.wait_until_ready(120)
            yield Server(process)


def measure(server: Server, prompts: Prompts) -> dict[str, Any]:
    """Milliseconds."""
    server.tokenize([prompts.make(512)])
    server.generate([prompts.make(512)])
    alone, through = {}, {}
    for length, times in LENGTHS.items():
        texts = [prompts.make(length) for _ in range(min(times, 5))]
        alone[length] = [1000 * server.tokenize([texts[n % len(texts)]])[0] for n in range(times)]
        through[length] = [1000 * server.generate([texts[n % len(texts)]])[0] for n in range(times)]
    short = [prompts.make(16) for _ in range(BURST)]
    long = prompts.make(32768)
    return {
        "preprocessing_ms": alone,
        "ensemble_ms": through,
        "burst_ms": [1000 * seconds for seconds in server.generate(short)],
        "short_behind_long_ms": [1000 * server.tokenize([long, short[n]])[1] for n in range(BEHIND)],
        "instance_mib": server.memory(),
    }


def in_process(prompts: Prompts) -> dict[int, float]:
    """Milliseconds of the tokenizer itself."""
    found = {}
    for length, times in LENGTHS.items():
        text, spent = prompts.make(length), []
        for _ in range(times):
            start = time.perf_counter()
            prompts.count(text)
            spent.append(1000 * (time.perf_counter() - start))
        found[length] = round(statistics.median(spent), 3)
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return round(statistics.median(values), 2)

    def by_length(name: str) -> dict[str, float]:
        return {str(length): median([ms for r in rounds for ms in r[name][length]]) for length in LENGTHS}

    behind = [ms for r in rounds for ms in r["short_behind_long_ms"]]
    return {
        "preprocessing_ms": by_length("preprocessing_ms"),
        "ensemble_ms": by_length("ensemble_ms"),
        "burst_of_64_ms": {
            "p50": median([median(r["burst_ms"]) for r in rounds]),
            "last": median([max(r["burst_ms"]) for r in rounds]),
        },
        "short_behind_long_ms": {"p50": median(behind), "max": round(max(behind), 2)},
        "instance_mib": median([mib for r in rounds for mib in r["instance_mib"]]),
    }


@click.command(help=__doc__)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A model's folder.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--note", default="", help="What else the machine did meanwhile.")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the folder of this hardware in results/.")
def main(tokenizer: Path, rounds: int, note: str, output: Path | None) -> None:
    prompts = Prompts(tokenizer)
    found: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds):
        for variant in VARIANTS:
            click.echo(f"round {number + 1} of {rounds}: {variant}", err=True)
            with serve(variant, prompts) as server:
                found[variant].append(measure(server, prompts))
    machine = describe(("tokenizers", "nvidia-pytriton"))
    report = {
        "machine": machine,
        "measured_at": time.strftime("%Y-%m-%d"),
        "note": note,
        "rounds": rounds,
        "vocabulary": len(prompts.tokenizer),
        "tokenizer_alone_ms": in_process(prompts),
        "variants": [
            {"instances": variant.instances, "parallel": variant.parallel} | summary(measured)
            for variant, measured in found.items()
        ],
    }
    path = output or ROOT / "benchmarks" / "results" / slug(str(machine["processor"])) / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report["variants"], indent=1))
    click.echo(f"written: {path}", err=True)


if __name__ == "__main__":
    main()
