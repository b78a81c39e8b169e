"""Every preset of `mixtral bench` against a freshly started server of the demo model in int8: results and pictures.

The presets were made for a large model on a GPU; here they are shortened to a minute or two each, as SHORTENED says.
The load generator shares the machine with the server.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from demo_server import ROOT, build_engine, served
from machine import processor, slug

from mixtral_client.bench.presets import PRESETS

PRECISION = "int8"
RATES = ("--duration", "25", "--warmup", "3")
SHORTENED: dict[str, tuple[str, ...]] = {
    "baseten": (),
    "fireworks": ("--rate", "0.5,1,2,4", *RATES),
    "friendli": ("--rate", "1,2,4,8", *RATES),
    # The demo model takes 2,048 tokens; the grid's longest point asks for 22,000.
    "nvidia": ("--scale-lengths", "0.09", "--concurrency", "16", "--requests", "32"),
}


def run(preset: str, url: str, folder: Path) -> None:
    """Writes `PRESET.json` and `PRESET-PICTURE.png`; earlier ones stay when the run fails. Raises ClickException."""
    with tempfile.TemporaryDirectory() as name:
        new = Path(name)
        options: list[str | Path] = ["--output", new / "result.json", "--pictures", new, *SHORTENED[preset]]
        command = [sys.executable, "-m", "mixtral_client", "bench", "--preset", preset, "--url", url, *options]
        if subprocess.run(command).returncode:
            raise click.ClickException(f"the preset {preset} failed, as said above")
        for old in folder.glob(f"{preset}-*.png"):
            old.unlink()
        for picture in new.glob("*.png"):
            shutil.copy(picture, folder / f"{preset}-{picture.name}")
        shutil.copy(new / "result.json", folder / f"{preset}.json")


@click.command(help=__doc__)
@click.option("--preset", "names", multiple=True, type=click.Choice(list(PRESETS)), help="  [default: all]")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results")
def main(names: tuple[str, ...], results: Path) -> None:
    folder = results / slug(processor()) / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, served(build_engine(Path(work), PRECISION)) as url:
        for name in names or PRESETS:
            click.echo(f"preset {name}", err=True)
            run(name, url, folder)


if __name__ == "__main__":
    main()
