"""Prometheus' text format, read strictly: what /metrics says, as values."""

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"(?:,|$)')
_PARTS = ("_bucket", "_sum", "_count")  # of a histogram


@dataclass
class Scrape:
    """types and helps: by family. samples: by name and labels."""

    types: dict[str, str] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """Raises ValueError at a line that is not of the format, and at a sample without a family or there twice."""
        scrape = cls()
        for line in text.splitlines():
            if line.startswith("# HELP "):
                _, _, name, words = line.split(" ", 3)
                scrape.helps[name] = words
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                scrape.types[name] = kind
            elif line:
                scrape._add(line)
        return scrape

    @classmethod
    def read(cls, url: str) -> "Scrape":
        with urllib.request.urlopen(url, timeout=10) as answer:
            return cls.parse(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """The sum of all series of that name whose labels include these; 0 when there is none."""
        wanted = labels.items()
        return sum(value for (found, own), value in self.samples.items() if found == name and wanted <= set(own))

    def families(self, prefix: str) -> Mapping[str, str]:
        """Names and types of the families that have at least one sample."""
        filled = {self._family(name) for name, _ in self.samples}
        return {name: kind for name, kind in self.types.items() if name.startswith(prefix) and name in filled}

    def labels(self, name: str) -> set[str]:
        """The label names of a family."""
        return {
            label for found, own in self.samples if self._family(found) == name for label, _ in own if label != "le"
        }

    def _family(self, sample: str) -> str:
        for part in _PARTS:
            if self.types.get(sample.removesuffix(part)) == "histogram":
                return sample.removesuffix(part)
        return sample

    def _add(self, line: str) -> None:
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a sample: {line}")
        name, inner, number = match.groups(default="")
        labels = _LABEL.findall(inner)
        if _LABEL.sub("", inner):
            raise ValueError(f"not labels: {line}")
        if self._family(name) not in self.types:
            raise ValueError(f"a sample without a family: {line}")
        key = (name, frozenset(labels))
        if key in self.samples:
            raise ValueError(f"twice: {line}")
        self.samples[key] = float(number)
