"""Writes docs/quality.md from the result files of `quality.py` and `served_quality.py`.

python benchmarks/quality_page.py            # write it
python benchmarks/quality_page.py --check    # exit 1 if it is not up to date
"""

import json
from pathlib import Path
from typing import Any

from page import page_command
from tables import Rows, markdown, quality_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "quality.md"
WEIGHTS, SERVED = "quality.json", "served-quality.json"
INTRODUCTION = """\
# Quality

Written by `benchmarks/quality_page.py` from the files in `benchmarks/results/`; do not edit it by hand. `make bench`
measures again.

Everything here is of the demo model, which is small, was trained on easy text and has hardly any outlier channels.
Measure your own model:

    mixtral-build compare MODEL ENGINE --text FILE                 # what sets two models apart, layer by layer
    mixtral-build evaluate ENGINE --text FILE                      # perplexity, from the weights
    mixtral eval perplexity FILE                                   # the same through a server, which may be anywhere
    mixtral eval multiple-choice mmlu/test --dev mmlu/dev          # accuracy, also `evaluate --multiple-choice`

## How it is measured

* **Perplexity** is exp of the mean negative log likelihood of the predicted tokens. Each text is tokenised by itself,
  with BOS in front, and cut into windows of `--context` tokens, each `--stride` after the one before (by default the
  context: no overlap). A window predicts what none before it has predicted, so no token counts twice; a window's first
  token is never predicted. A smaller stride gives every token more context and costs more.
* **Accuracy** on multiple choice: prompts are MMLU's, with the first `--shots` examples of the question's subject
  before it; of the choices' letters the one with the highest log likelihood after `Answer:` is the model's answer.
* `mixtral-build evaluate` runs the weights layer by layer in float32, so a model of any size can be measured on a small
  machine. `mixtral eval` asks a server for the log probabilities of prompts, in the activations' type that it serves
  with; it tokenises by the server's tokenizer and needs no weights. Files, definitions and names of the figures are the
  same. Two limits differ: a window or prompt has at most as many tokens as the server takes, which is one less than its
  sequence length, and the choices of a question are requests of their own.
* A request that fails is counted under `errors` and left out of the figures; then, and after Ctrl-C, the result says
  `"partial": true`, and the exit code is not 0.
"""
FROM_WEIGHTS = """\
## What each precision changes

By `mixtral-build compare` on the held-out text ({tokens:,} predicted tokens, in float32, against the 16-bit model), on
{machine}.
The last column is that of the layer in which the fewest tokens kept the same experts;
[pictures](../{folder}) show every layer.

{table}
The rows with calibration text of their own calibrate on every second held-out text and measure the others; so their
figures are of another half and are to be read beside each other only. Perplexity hardly moves and can even move down;
KL and top-1 agreement show the damage. AWQ protects outlier channels: expect it to gain more on the real model.
"""
THROUGH_SERVER = """\
## Through the server

By `mixtral eval` on a Triton server with default settings, which computes in bfloat16, beside `mixtral-build evaluate`
on the same engine, on
{machine}.

Perplexity on {tokens:,} predicted tokens of the held-out text. In bfloat16 the two ways compute the same in another
order of sums, whose rounding shows in the fourth digit; a server set to float32 agrees with the last column to one part
in a hundred thousand, which a test checks.

{perplexity}
Accuracy on {questions} questions with {shots} examples each, on which of four answers was given in the held-out text.
The demo model has never seen letters to choose from, so it does little better than guessing (0.25, standard error
{error:.2f}), and only the agreement says something here.

{accuracy}"""
WAYS = {"served": "through the server", "bfloat16": "weights, bfloat16", "float32": "weights, float32"}


def served_table(report: dict[str, Any], kind: str, figure: str, digits: int) -> str:
    rows: Rows = [("precision", *WAYS.values())]
    for precision, one in report["results"].items():
        rows.append((precision, *(f"{one[way][kind][figure]:.{digits}f}" for way in WAYS)))
    return markdown(rows)


def render(results: Path = RESULTS) -> str:
    """The whole page, a pair of sections for each kind of machine."""
    sections = [INTRODUCTION]
    for folder in sorted(path.parent for path in results.glob(f"*/{WEIGHTS}")):
        report = json.loads((folder / WEIGHTS).read_text())
        sections.append(
            FROM_WEIGHTS.format(
                tokens=max(one["tokens"] for one in report["results"].values()),
                machine=_machine(report),
                folder=f"benchmarks/results/{folder.name}",
                table=quality_table(report),
            )
        )
        if (folder / SERVED).is_file():
            sections.append(_served(json.loads((folder / SERVED).read_text())))
    return "\n".join(sections)


def _served(report: dict[str, Any]) -> str:
    served = next(iter(report["results"].values()))["served"]
    return THROUGH_SERVER.format(
        machine=_machine(report),
        tokens=served["perplexity"]["tokens"],
        questions=served["multiple_choice"]["questions"],
        shots=served["multiple_choice"]["shots"],
        error=(0.25 * 0.75 / served["multiple_choice"]["questions"]) ** 0.5,
        perplexity=served_table(report, "perplexity", "perplexity", 5),
        accuracy=served_table(report, "multiple_choice", "accuracy", 3),
    )


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']}"


main = page_command(PAGE, render)

if __name__ == "__main__":
    main()
