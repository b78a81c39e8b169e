"""What each precision does to the demo model: `mixtral-build compare` against the 16-bit model on the held-out text.

Calibrated formats are measured twice: with the calibration text that ships, and with text like the measured one (every
second held-out text calibrates, the others measure).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from machine import describe, slug

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-mixtral"
HELDOUT = MODEL / "heldout.jsonl"
BUILD = [sys.executable, "-m", "mixtral_build"]
# name in the results -> precision, further options of `quantize`, calibrated on text like the measured one
RUNS: dict[str, tuple[str, list[str], bool]] = {
    "int8": ("int8", [], False),
    "fp8": ("fp8", [], False),
    "fp8, 16-bit KV cache": ("fp8", ["--kv-cache", "16bit"], False),
    "fp8, own calibration text": ("fp8", [], True),
    "awq": ("awq", [], False),
    "awq, own calibration text": ("awq", [], True),
}
SHOWN = ("perplexity_a", "perplexity_b", "perplexity_change_percent", "mean_kl", "top1_agreement", "tokens", "layers")


def call(*arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run([*BUILD, *map(str, arguments), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@click.command(help=__doc__)
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(results: Path) -> None:
    machine = describe(("torch", "numpy"))
    folder = results / slug(str(machine["processor"]))
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        halves = [Path(work) / "calibrate.jsonl", Path(work) / "measure.jsonl"]
        lines = HELDOUT.read_text().splitlines(keepends=True)
        for part, path in enumerate(halves):
            path.write_text("".join(lines[part::2]))
        for name, (precision, options, own_text) in RUNS.items():
            checkpoint = Path(work) / slug(name)
            calibration = ["--calib-data", str(halves[0])] if own_text else []
            quantized = call("quantize", MODEL, checkpoint, "--precision", precision, *options, *calibration)
            picture = folder / f"quality-{slug(name)}.png"
            compared = call(
                "compare", MODEL, checkpoint, "--text", halves[1] if own_text else HELDOUT, "--picture", picture
            )
            found[name] = {key: compared[key] for key in SHOWN} | {"calibration": quantized.get("calibration")}
            click.echo(
                f"{name:<28} perplexity {compared['perplexity_change_percent']:+.3f} %, "
                f"KL {compared['mean_kl']:.2e}, top-1 {compared['top1_agreement']:.2%}"
            )
    report = {"machine": machine, "model": MODEL.name, "text": HELDOUT.name, "results": found}
    (folder / "quality.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
