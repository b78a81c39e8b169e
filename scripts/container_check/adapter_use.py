"""Which names of the bindings our adapter uses, read from its source: a difference elsewhere cannot affect it."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ADAPTER = Path(__file__).resolve().parents[2] / "runtime" / "mixtral_runtime" / "tensorrt_llm"


@dataclass(slots=True)
class AdapterUse:
    """names: attributes, keywords, and strings that could be either. positional: by the last part of a called name,
    the most arguments given by position. keywords: by the same, those given by name. splats: called with `**`."""

    names: set[str] = field(default_factory=set)
    positional: dict[str, int] = field(default_factory=dict)
    keywords: dict[str, set[str]] = field(default_factory=dict)
    splats: set[str] = field(default_factory=set)

    def uses(self, name: str) -> bool:
        """name: of a class, perhaps a nested one, or of a member."""
        return name.rpartition(".")[2] in self.names

    def calls(self, name: str) -> bool:
        return name.rpartition(".")[2] in self.positional

    def passes(self, function: str, parameter: str, place: int) -> bool:
        """Whether a call gives this parameter, by name or at this place."""
        function = function.rpartition(".")[2]
        by_name = parameter in self.keywords.get(function, ())
        return by_name or self.by_position(function, place) or (function in self.splats and parameter in self.names)

    def by_position(self, function: str, place: int) -> bool:
        return self.positional.get(function.rpartition(".")[2], 0) > place


def scan(folder: Path = ADAPTER) -> AdapterUse:
    """All modules of a package; an empty result when there is none."""
    return scan_sources(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))


def scan_sources(sources: Iterable[str]) -> AdapterUse:
    use = AdapterUse()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                use.names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                use.names.add(node.value)
            elif isinstance(node, ast.Call):
                _add_call(use, node)
    return use


def _add_call(use: AdapterUse, call: ast.Call) -> None:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    if name is None:
        return
    use.positional[name] = max(use.positional.get(name, 0), len(call.args))
    named = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    use.keywords.setdefault(name, set()).update(named)
    use.names.update(named)
    if len(named) < len(call.keywords):
        use.splats.add(name)
