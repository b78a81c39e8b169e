"""What a client measures of each precision through the server, beside what the weights give when read directly:
`mixtral eval` on a real Triton, and `mixtral-build evaluate`, on the demo model's held-out text.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from demo_server import MODEL, ROOT, build_engine, call, served
from machine import describe, slug
from quality_questions import write_questions

HELDOUT = MODEL / "heldout.jsonl"
PRECISIONS = ("16bit", "int8", "fp8", "awq")
CONTEXT = 1024  # no held-out text is longer
QUESTIONS = 90
SHOTS = 2


def measure(precision: str, work: Path, questions: Path, examples: Path) -> dict[str, Any]:
    engine = build_engine(work, precision)
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
