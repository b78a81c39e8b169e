"""Writes docs/performance.md from every result file of speed.

python benchmarks/performance_page.py            # write it
python benchmarks/performance_page.py --check    # exit 1 if it is not up to date
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_tables
import gpu_tables
import performance_tables as tables
import streaming_tables
from gateway_table import gateway
from page import page_command
from tables import machine_line, machine_of

from mixtral_client.bench.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
INTRODUCTION = """\
# Performance

Written by `benchmarks/performance_page.py` from the files in `benchmarks/results/`; do not edit it by hand. `make
bench` measures again; every section names the command for it alone.

Read the ratios. Both sides of a ratio were measured in one run, in alternation; absolute figures belong to the machine,
and on another day they differ by more than most ratios do. Figures are medians of the rounds, with their range behind
them in brackets, and every ratio is of the same round. The model, where no other is named, is the demo model, so small
that what surrounds the arithmetic decides: only the chapter on NVIDIA GPUs says how fast Mixtral-8x7B is.
[benchmarking.md](benchmarking.md) measures a server of yours and defines TTFT and TPOT; [quality.md](quality.md) has
what each precision does to quality.
"""
GPU = """\
## NVIDIA GPUs

The PyTorch engine on random weights of Mixtral-8x7B's shape, made on the card in their final format; `make gpu-check`
measures it ([gpu.md](gpu.md)). Bytes of a step: the weights that its tokens need, lm_head, and their keys and values.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """text: of the result file's content. picture: beside it, without its folder."""

    title: str
    file: str
    command: str
    about: str
    text: Callable[[Mapping[str, Any]], str]
    picture: str | None = None


SECTIONS = (
    Section(
        "Streaming path",
        "streaming.json",
        "make bench-streaming",
        "What lies between an engine's step and the client, with the synthetic engine behind a real Triton: our\n"
        "ensemble, one as it is usually written, and the engine model alone, which knows no text. A path carries a\n"
        "paced load when the 99th percentile of what it adds stays below 100 ms and the median does not grow.",
        streaming_tables.streaming,
        "streaming.png",
    ),
    Section(
        "OpenAI gateway",
        "gateway.json",
        "make bench-gateway",
        "The synthetic engine behind Triton, asked through the gateway and over gRPC in alternation; server, gateway\n"
        "and load share the machine. Lag: from a token's making to its arrival. Why: [gateway.md](gateway.md).",
        gateway,
        "gateway.png",
    ),
    Section(
        "PyTorch engine",
        "decode.json",
        "make bench-decode",
        "Decode steps of the engine, without a server, beside transformers on the same 16-bit weights.",
        tables.decode,
        "decode.png",
    ),
    Section(
        "Engines on a CPU",
        "engine.json",
        "make bench-engine",
        "int8 on a random Mixtral of 0.8 billion parameters, beside other engines and what the memory allows.\n"
        "[engine.md](engine.md#measured) has every precision, the demo model, the served engine and loading.",
        engine_tables.summary,
        "engine.png",
    ),
    Section(
        "Conversion",
        "build.json",
        "make bench-build",
        "Quantising random weights of Mixtral-8x7B's shapes, each precision beside a plain copy that reads and writes\n"
        "the same number of bytes, the source not in the page cache. [build.md](build.md) compares the precisions.",
        tables.conversion,
        "build.png",
    ),
    Section(
        "Peers",
        "peers.json",
        "make bench-peers",
        "Our server beside other programs on the same prompts and model: our figure divided by the peer's.\n"
        "[benchmarking.md](benchmarking.md#beside-peers) says what to know when reading it.",
        tables.peers,
        "peers.png",
    ),
    Section(
        "The load generator itself",
        "load-generator.json",
        "make bench-generator",
        "What `mixtral bench` carries, against the synthetic engine on the same cores. There the server is saturated\n"
        "first, so the ceiling is what a core would allow at the CPU time that the generator takes for a response.",
        tables.load_generator,
    ),
)
GPU_FILE = "gpu.json"
PRESETS_COMMAND = "make bench-presets"


def render(results: Path = RESULTS) -> str:
    """The whole page, a chapter for each kind of machine."""
    chapters = [INTRODUCTION]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        reports = {s.file: json.loads((folder / s.file).read_text()) for s in SECTIONS if (folder / s.file).is_file()}
        if reports or (folder / "presets").is_dir():
            chapters.append(_chapter(folder, reports))
    return "\n".join([*chapters, _gpus(results)])


def _gpus(results: Path) -> str:
    """A section for each card that was measured, or the marks with nothing beside them."""
    parts = [GPU]
    for path in sorted(results.glob(f"*/{GPU_FILE}")):
        report = json.loads(path.read_text())
        links = [_link("result", path)]
        if (picture := path.with_suffix(".png")).is_file():
            links.append(_link("picture", picture))
        text = gpu_tables.chapter(report)
        parts.append(f"### {machine_of(report)['processor']}\n\n{text}\n`make gpu-check`, {', '.join(links)}.\n")
    if len(parts) == 1:
        parts.append(gpu_tables.blank_chapter())
    return "\n".join(parts)


def _chapter(folder: Path, reports: Mapping[str, Any]) -> str:
    machines = [machine_of(report) for report in reports.values()]
    name = f"{machines[0]['processor']}, {machines[0]['cores']} cores" if machines else folder.name
    parts = [f"## {name}\n"]
    parts += [_section(section, folder, reports[section.file]) for section in SECTIONS if section.file in reports]
    missing = [f"`{section.command}`" for section in SECTIONS if section.file not in reports]
    if (folder / "presets").is_dir():
        parts.append(_presets(folder))
    else:
        missing.append(f"`{PRESETS_COMMAND}`")
    if missing:
        parts.append(f"Not measured here yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _section(section: Section, folder: Path, report: Mapping[str, Any]) -> str:
    links = [_link("result", folder / section.file)]
    if section.picture and (folder / section.picture).is_file():
        links.append(_link("picture", folder / section.picture))
    footer = f"{machine_line(report)}\n`{section.command}`, {', '.join(links)}.\n"
    return f"### {section.title}\n\n{section.about}\n\n{section.text(report)}\n{footer}"


def _presets(folder: Path) -> str:
    parts = [
        "### Presets of `mixtral bench`\n",
        "The write-ups' measurements on the int8 demo model, shortened to a minute or two each; generator and server\n"
        f"share the machine. `{PRESETS_COMMAND}`.\n",
    ]
    for name in PRESETS:
        path = folder / "presets" / f"{name}.json"
        if not path.is_file():
            parts.append(f"#### `{name}`\n\nNot measured here yet.\n")
            continue
        pictures = sorted(path.parent.glob(f"{name}-*.png"))
        links = [_link(picture.stem.removeprefix(f"{name}-"), picture) for picture in pictures]
        parts.append(f"#### `{name}`\n\n{tables.preset(path)}\nPictures: {', '.join(links) or 'none'}.\n")
    return "\n".join(parts)


def _link(text: str, path: Path) -> str:
    below = "/".join(path.parts[-3:] if path.parent.name == "presets" else path.parts[-2:])
    return f"[{text}](../benchmarks/results/{below})"


main = page_command(PAGE, render)

if __name__ == "__main__":
    main()
