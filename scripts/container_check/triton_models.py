"""Tensors of NVIDIA's models in the image against those of our model repository."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from container_check.check import NotAvailable, Outcome
from container_check.difference import Difference, Weight, outcome
from container_check.workplace import ROOT, Workplace

REPOSITORY = ROOT / "model_repository"
THEIRS = Path("all_models/inflight_batcher_llm")  # below the app folder
OFFERED = ("ensemble", "tensorrt_llm")  # what clients call; the others speak only with each other
INTERNAL = ("preprocessing", "postprocessing")
ADVICE = "clients of NVIDIA's models expect these tensors: adapt model_repository/, and send the JSON report with it"
COMMENT = re.compile(r"#.*")
LIST = re.compile(r"^(input|output)\s*:?\s*\[", re.MULTILINE)
FIELD = re.compile(r"(name|data_type)\s*:\s*\"?([^\s\"]+)\"?")
DIMS = re.compile(r"dims\s*:\s*\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Tensor:
    """kind: without TYPE_, None where the file leaves it to a template."""

    kind: str | None
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind or 'of any type'}{list(self.dims)}"


def check(workplace: Workplace) -> Outcome:
    folder = workplace.app / THEIRS
    if not folder.is_dir():
        raise NotAvailable(f"{folder} does not exist; NVIDIA's image brings it")
    differences, compared = [], 0
    for model in (*OFFERED, *INTERNAL):
        path = folder / model / "config.pbtxt"
        if not path.is_file():
            differences.append(Difference(Weight.HARMLESS, f"the image has no model {model}"))
            continue
        theirs = read_tensors(path.read_text(encoding="utf-8"))
        ours = read_tensors((REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8"))
        differences += compare(model, ours, theirs)
        compared += sum(map(len, theirs.values()))
    return outcome(differences, f"{compared} tensors compared", ADVICE)


def compare(
    model: str, ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]
) -> Iterator[Difference]:
    """What we have beside theirs is our own business; an input that we lack is one more thing that is refused."""
    weight = Weight.AFFECTS_US if model in OFFERED else Weight.HARMLESS
    for direction, tensors in theirs.items():
        for name, tensor in tensors.items():
            mine = ours[direction].get(name)
            if mine is None:
                lacking = Weight.NOTE if weight == Weight.AFFECTS_US and direction == "input" else weight
                yield Difference(lacking, f"{model}: the {direction} {name} {tensor} is not in ours")
            elif (tensor.kind not in (None, mine.kind)) or tensor.dims != mine.dims:
                yield Difference(weight, f"{model}: the {direction} {name} is {mine} here, {tensor} in NVIDIA's model")


def read_tensors(text: str) -> dict[str, dict[str, Tensor]]:
    """{"input": …, "output": …} by name, of a config.pbtxt that may have ${…} where a template fills in values, which
    is why it is not read as a protocol buffer."""
    text = COMMENT.sub("", text)
    found: dict[str, dict[str, Tensor]] = {"input": {}, "output": {}}
    for start in LIST.finditer(text):
        for block in _blocks(text[start.end() :]):
            fields = dict(FIELD.findall(block))
            kind = fields["data_type"]
            dims = DIMS.search(block)
            found[start[1]][fields["name"]] = Tensor(
                kind.removeprefix("TYPE_") if kind.startswith("TYPE_") else None,
                tuple(int(size) for size in re.findall(r"-?\d+", dims[1])) if dims else (),
            )
    return found


def _blocks(text: str) -> Iterator[str]:
    """The {…} of a list, up to the bracket that closes it."""
    depth, begun = 0, 0
    for place, character in enumerate(text):
        if character in "{[":
            if depth == 0:
                begun = place
            depth += 1
        elif character in "}]":
            if depth == 0:
                return
            depth -= 1
            if depth == 0:
                yield text[begun + 1 : place]
