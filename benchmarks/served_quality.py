"""What a client measures of each precision through the server, beside what the weights give when read directly:
`mixtral eval` on a real Triton, and `mixtral-build evaluate`, on the demo model's held-out text.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from machine import describe, slug
from quality_questions import write_questions

from mixtral_serving.server.free_address import free_address
from mixtral_serving.server.process import ServerProcess
from mixtral_serving.server.self_test import self_test

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-mixtral"
HELDOUT = MODEL / "heldout.jsonl"
PRECISIONS = ("16bit", "int8", "fp8", "awq")
CONTEXT = 1024  # no held-out text is longer
QUESTIONS = 90
SHOTS = 2
READY_S = 120.0


def call(module: str, *arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def served(engine: Path) -> Iterator[str]:
    """The gRPC address of a server for this engine, with its default settings."""
    with ServerProcess(ROOT / "model_repository", engine, free_address()) as server:
        server.wait_until_ready(READY_S)
        self_test(server.address)
        yield f"127.0.0.1:{server.address.grpc_port}"


def measure(precision: str, work: Path, questions: Path, examples: Path) -> dict[str, Any]:
    checkpoint, engine = work / f"{precision}-checkpoint", work / precision
    call("mixtral_build", "quantize", MODEL, checkpoint, "--precision", precision)
    call("mixtral_build", "engine", checkpoint, engine, "--runtime", "pytorch")
    shown = ("--dev", examples, "--shots", str(SHOTS))
    windows = ("--context", str(CONTEXT))
    found = {
        dtype: call(
            *("mixtral_build", "evaluate", engine, "--dtype", dtype, "--text", HELDOUT, *windows),
            *("--multiple-choice", questions, *shown),
        )
        for dtype in ("float32", "bfloat16")
    }
    with served(engine) as url:
        perplexity = call("mixtral_client", "eval", "perplexity", HELDOUT, *windows, "--url", url)
        accuracy = call("mixtral_client", "eval", "multiple-choice", questions, *shown, "--url", url)
    return {
        "served": {"perplexity": perplexity["perplexity"], "multiple_choice": accuracy["multiple_choice"]},
        **{dtype: {key: one[key] for key in ("perplexity", "multiple_choice")} for dtype, one in found.items()},
    }


@click.command(help=__doc__)
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(results: Path) -> None:
    machine = describe(("torch", "numpy", "nvidia-pytriton"))
    folder = results / slug(str(machine["processor"]))
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        questions, examples = Path(name) / "questions.jsonl", Path(name) / "examples.jsonl"
        write_questions(HELDOUT, questions, examples, QUESTIONS)
        for precision in PRECISIONS:
            found[precision] = one = measure(precision, Path(name), questions, examples)
            for way in ("float32", "bfloat16", "served"):
                perplexity, accuracy = one[way]["perplexity"], one[way]["multiple_choice"]
                click.echo(
                    f"{precision:<6} {way:<9} perplexity {perplexity['perplexity']:.5f} of {perplexity['tokens']} "
                    f"tokens, accuracy {accuracy['accuracy']:.4f} of {accuracy['questions']} questions"
                )
    report = {
        "machine": machine,
        "model": MODEL.name,
        "text": HELDOUT.name,
        "activations": "bfloat16",
        "results": found,
    }
    (folder / "served-quality.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
