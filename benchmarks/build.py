"""Quantising a checkpoint with Mixtral-8x7B's shapes: speed against a plain copy of the same bytes, and memory.

For each precision `mixtral-build quantize` and `plain_copy.py`, which reads and writes the same number of bytes,
alternate `--rounds` times; then transformers loads the model once in bfloat16. Every run is a child process of its own
and finds the source on the disk, not in the page cache, and the time includes fsync and starting Python.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import matplotlib
from child import Usage, drop_from_page_cache, run_watched
from machine import describe, slug

from mixtral_runtime.config import CheckpointConfig
from mixtral_runtime.formats import FORMATS
from mixtral_runtime.tensor_names import weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
QUANTIZE = (sys.executable, "-m", "mixtral_build", "quantize")
COPY = (sys.executable, ROOT / "benchmarks" / "plain_copy.py")
GENERATE = (sys.executable, ROOT / "scripts" / "make_synthetic_checkpoint.py")
LOAD = (
    "import sys, torch, transformers; "
    "transformers.MixtralForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)"
)
FULL_LAYERS = 32


@dataclass(frozen=True)
class Measurement:
    """Of one program; figures of each round. gb_per_s: bytes read and written, in 10^9, by wall time."""

    program: str
    bytes_read: int
    bytes_written: int
    usages: list[Usage]

    @property
    def gb_per_s(self) -> list[float]:
        return [(self.bytes_read + self.bytes_written) / usage.wall_s / 1e9 for usage in self.usages]

    @property
    def median_wall_s(self) -> float:
        return statistics.median(usage.wall_s for usage in self.usages)

    @property
    def peak_anonymous_bytes(self) -> int:
        return max(usage.peak_anonymous_bytes for usage in self.usages)


@dataclass(frozen=True)
class Pair:
    """speed_ratio: of the medians, above 1 where quantising is faster than copying. full_model_hours: the median wall
    time grown with the parameters to the full number of layers."""

    precision: str
    quantize: Measurement
    copy: Measurement
    full_model_hours: float

    @property
    def speed_ratio(self) -> float:
        return self.copy.median_wall_s / self.quantize.median_wall_s


def measure_precision(precision: str, model: Path, folder: Path, rounds: int, growth: float) -> Pair:
    sources = sorted(model.glob("*.safetensors"))
    read = sum(path.stat().st_size for path in sources)
    checkpoint, copied = folder / "checkpoint", folder / "copied"
    written = 0
    quantize_usages: list[Usage] = []
    copy_usages: list[Usage] = []
    for round_ in range(rounds):
        drop_from_page_cache(sources)
        quantize_usages.append(run_watched([*QUANTIZE, model, checkpoint, "--precision", precision]))
        written = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        shutil.rmtree(checkpoint)
        drop_from_page_cache(sources)
        copy_usages.append(run_watched([*COPY, str(written), copied, *sources]))
        copied.unlink()
        walls = f"quantize {quantize_usages[-1].wall_s:.1f} s, copy {copy_usages[-1].wall_s:.1f} s"
        click.echo(f"{precision} round {round_ + 1}/{rounds}: {walls}", err=True)
    quantize = Measurement("quantize", read, written, quantize_usages)
    copy = Measurement("plain copy", read, written, copy_usages)
    return Pair(precision, quantize, copy, quantize.median_wall_s * growth / 3600)


def measure_loading(model: Path) -> Measurement:
    sources = sorted(model.glob("*.safetensors"))
    drop_from_page_cache(sources)
    usage = run_watched([sys.executable, "-c", LOAD, model])
    return Measurement("transformers from_pretrained", sum(path.stat().st_size for path in sources), 0, [usage])


def growth_to_full_model(model: Path) -> float:
    """How many times the parameters the full number of layers has."""
    config = CheckpointConfig.from_hf(json.loads((model / "config.json").read_text()))
    return _parameters(replace(config, num_hidden_layers=FULL_LAYERS)) / _parameters(config)


def _parameters(config: CheckpointConfig) -> int:
    return sum(math.prod(weight.shape) for weight in weights(config))


def draw(pairs: list[Pair], loading: Measurement, caption: str, path: Path) -> None:
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for place, pair in enumerate(pairs):
        for offset, measurement, color in ((-0.2, pair.quantize, "C0"), (0.2, pair.copy, "C7")):
            rates = measurement.gb_per_s
            median = statistics.median(rates)
            error = [[median - min(rates)], [max(rates) - median]]
            label = measurement.program if place == 0 else None
            speed.bar(place + offset, median, 0.36, yerr=error, capsize=3, color=color, label=label)
    speed.set_xticks(range(len(pairs)), [pair.precision for pair in pairs])
    speed.set_ylabel("GB/s read and written, median with range")
    speed.margins(y=0.16)
    speed.legend(loc="upper center", ncols=2)
    peaks = [(pair.precision, pair.quantize.peak_anonymous_bytes) for pair in pairs]
    peaks.append(("transformers\nload", loading.peak_anonymous_bytes))
    bars = memory.bar([name for name, _ in peaks], [peak / 2**30 for _, peak in peaks], color="C0")
    memory.bar_label(bars, fmt="%.2f")
    memory.margins(y=0.1)
    memory.set_ylabel("peak anonymous memory, GiB")
    figure.suptitle(f"Quantising 8x7B shapes\n{caption}", fontsize=9)
    figure.savefig(path, dpi=130)


def as_json(measurement: Measurement) -> dict[str, object]:
    return asdict(measurement) | {
        "gb_per_s": measurement.gb_per_s,
        "median_wall_s": measurement.median_wall_s,
        "peak_anonymous_bytes": measurement.peak_anonymous_bytes,
    }


@click.command(help=__doc__)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(FORMATS)), help="  [default: all]")
@click.option("--layers", default=2, show_default=True, type=click.IntRange(1, FULL_LAYERS), help="3.0 GB each.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="One that make_synthetic_checkpoint.py made."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where there is room for model and checkpoint.")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(
    precisions: tuple[str, ...], layers: int, rounds: int, model: Path | None, folder: Path | None, results: Path
) -> None:
    machine = describe(("torch", "transformers", "safetensors"))
    names = precisions or tuple(name for name in FORMATS if name != "16bit")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        if model is None:
            model = scratch / "model"
            subprocess.run([*GENERATE, model, "--layers", str(layers)], check=True, stdout=subprocess.DEVNULL)
        growth = growth_to_full_model(model)
        pairs = [measure_precision(precision, model, scratch, rounds, growth) for precision in names]
        loading = measure_loading(model)
    target = results / slug(str(machine["processor"]))
    target.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine,
        "settings": {
            "source_bytes": loading.bytes_read,
            "rounds": rounds,
            "full_layers": FULL_LAYERS,
            "load_average": os.getloadavg(),  # of the last minute at the end: above 1 per core others were running
        },
        "measurements": [
            {
                "precision": pair.precision,
                "quantize": as_json(pair.quantize),
                "copy": as_json(pair.copy),
                "speed_ratio": pair.speed_ratio,
                "full_model_hours": pair.full_model_hours,
            }
            for pair in pairs
        ],
        "loading": as_json(loading),
    }
    (target / "build.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(pairs, loading, f"{machine['processor']}, {machine['cores']} cores", target / "build.png")
    click.echo(f"{'':<10}{'wall s':>8}{'GB/s':>7}{'copy GB/s':>11}{'ratio':>7}{'peak GiB':>10}{'full model h':>14}")
    for pair in pairs:
        click.echo(
            f"{pair.precision:<10}{pair.quantize.median_wall_s:>8.1f}{statistics.median(pair.quantize.gb_per_s):>7.2f}"
            f"{statistics.median(pair.copy.gb_per_s):>11.2f}{pair.speed_ratio:>7.2f}"
            f"{pair.quantize.peak_anonymous_bytes / 2**30:>10.2f}{pair.full_model_hours:>14.2f}"
        )
    click.echo(f"{loading.program}: {loading.median_wall_s:.1f} s, peak {loading.peak_anonymous_bytes / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
