"""introspect.py LIBRARY BINDINGS TARGET: imports both modules and writes what they look like to TARGET, as JSON.

In a process of its own, because importing TensorRT-LLM prints, takes a GPU's memory, and may end the process.
"""

import enum
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def describe(module: Any, prefix: str, found: dict[str, dict[str, Any]]) -> None:
    """Adds the module's (or the class's) own classes, enums and functions by their names, nested ones with a dot."""
    for name, value in list(vars(module).items()):
        path = f"{prefix}{name}"
        if name.startswith("_"):
            continue
        if isinstance(value, type) and issubclass(value, enum.Enum):
            found["enums"][path] = list(value.__members__)
        elif isinstance(value, type):
            found["classes"][path] = describe_class(value)
            if prefix.count(".") < 2:  # a class may name itself
                describe(value, f"{path}.", found)
        elif prefix == "" and type(value).__name__ == "module" and value.__name__.startswith(module.__name__):
            describe(value, f"{name}.", found)
        elif prefix == "" and callable(value):
            found["functions"][path] = value.__doc__ or ""


def describe_class(owner: type) -> dict[str, Any]:
    """properties: whether each can be set."""
    members = {name: value for base in reversed(owner.__mro__[:-1]) for name, value in vars(base).items()}
    properties = {name: value.fset is not None for name, value in members.items() if isinstance(value, property)}
    methods = {
        name: getattr(owner, name).__doc__ or ""
        for name, value in members.items()
        if name not in properties
        and not isinstance(value, type)
        and (callable(value) or isinstance(value, staticmethod | classmethod))
        and (not name.startswith("__") or name in ("__enter__", "__exit__"))
    }
    init = getattr(members.get("__init__"), "__doc__", None)
    return {"init": init, "properties": properties, "methods": methods}


def probes(module: Any) -> dict[str, str]:
    """What objects do that no signature tells; an exception is an answer too."""

    def answer(ask: Callable[[], object]) -> str:
        try:
            return str(ask())
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    return {
        "ExecutorConfig().normalize_log_probs": answer(lambda: module.ExecutorConfig().normalize_log_probs),
        "KvCacheConfig().onboard_blocks": answer(lambda: module.KvCacheConfig().onboard_blocks),
        "KvCacheRetentionConfig([])": answer(lambda: module.KvCacheRetentionConfig([]) and "made"),
    }


def main() -> None:
    library_name, bindings_name, target = sys.argv[1:]
    try:
        version = getattr(importlib.import_module(library_name), "__version__", "of unknown version")
        bindings = importlib.import_module(bindings_name)
        found: dict[str, Any] = {"version": version, "classes": {}, "enums": {}, "functions": {}}
        describe(bindings, "", found)
        found["probes"] = probes(bindings)
    except Exception as error:  # a library that was never run here may raise anything
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(target).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
