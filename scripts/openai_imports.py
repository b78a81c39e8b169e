"""Does the installed openai have every name that the installed TensorRT-LLM imports from it? Exit status 1 if not.

Importing TensorRT-LLM itself would tell as well, but needs a GPU's driver, which is not there while an image is built.
"""

import ast
import importlib
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def imported_names(package: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each `from openai... import name` at the top level of the package's modules: those that run
    when it is imported."""
    warnings.simplefilter("ignore", SyntaxWarning)
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_bytes(), str(path)).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "openai" and not node.level:
                yield from ((str(node.module), alias.name) for alias in node.names)


def lacking(names: Iterator[tuple[str, str]]) -> list[str]:
    """Those that cannot be imported, as `module.name`."""
    found = []
    for module, name in sorted(set(names)):
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            found.append(f"{module}.{name}")
    return found


def main() -> int:
    spec = find_spec("tensorrt_llm")  # found, not imported
    if spec is None or spec.origin is None:
        return 0
    names = lacking(imported_names(Path(spec.origin).parent))
    if names:
        print(f"openai lacks what TensorRT-LLM imports from it: {', '.join(names)}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
