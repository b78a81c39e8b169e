"""Doc strings in the form that nanobind writes, from the recorded API; and a module that has them.

The module stands in for compiled bindings where only what they look like is read: it does nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULE = "stand_in.bindings"
SOURCE = '''"""Looks like compiled bindings; does nothing."""

import enum
import json
from pathlib import Path as _Path

RECORD = json.loads(_Path(__file__).with_name("looks.json").read_text())
PLACES = {"": globals()}


def _function(name, doc):
    def function(*arguments, **named):
        return None

    function.__name__, function.__doc__ = name, doc
    return function


def _put(path, value):
    owner, _, name = path.rpartition(".")
    if not owner:
        globals()[name] = value
    elif owner in PLACES:
        setattr(PLACES[owner], name, value)


for path, entry in RECORD["classes"].items():
    body = {member: property(lambda self: True, (lambda self, value: None) if settable else None)
            for member, settable in entry["properties"].items()}
    body |= {member: _function(member, doc) for member, doc in entry["methods"].items()}
    if entry["init"] is not None:
        body["__init__"] = _function("__init__", entry["init"])
    if path.startswith("kv_cache."):
        continue
    PLACES[path] = type(path.rpartition(".")[2], (), body)
    _put(path, PLACES[path])
for path, members in RECORD["enums"].items():
    _put(path, enum.Enum(path.rpartition(".")[2], members))
for name in RECORD["functions"]:
    globals()[name] = _function(name, f"{name}(arg: bytes, /) -> Result")
'''


def looks(record: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded API as `container_check/programs/introspect.py` describes a module that has exactly it."""
    classes = {name: class_looks(entry) for name, entry in record.items() if "init" in entry}
    functions = {name: f"{name}(arg: bytes, /) -> Result" for name in record["functions"]}
    return {
        "version": "1.2.1",
        "classes": classes,
        "enums": {name: list(members) for name, members in record["enums"].items()},
        "functions": functions,
        "probes": {
            "ExecutorConfig().normalize_log_probs": "True",
            "KvCacheConfig().onboard_blocks": "True",
            "KvCacheRetentionConfig([])": "TypeError: incompatible function arguments",
        },
    }


def class_looks(entry: Mapping[str, Any]) -> dict[str, Any]:
    overloads = [] if entry["init"] is None else [entry["init"], *entry.get("init_overloads", [])]
    methods = {
        name: "\n".join(line(name, overload["args"], overload["returns"]) for overload in found)
        for name, found in entry["methods"].items()
    }
    static = [name for key in ("static_methods", "factories", "predicates") for name in entry.get(key, ())]
    read_only = entry.get("read_only_properties", ())
    return {
        "init": "\n".join(line("__init__", parameters) for parameters in overloads) if overloads else None,
        "properties": {name: name not in read_only for name in entry["properties"]},
        "methods": methods | {name: f"{name}() -> object" for name in static},
    }


def line(name: str, parameters: list[dict[str, Any]], returns: str = "None") -> str:
    """One overload of a method, as nanobind 2 writes it."""
    parts, keyword_only = ["self"], False
    for parameter in parameters:
        if parameter["kind"] == "keyword_only" and not keyword_only:
            parts.append("*")
            keyword_only = True
        parts.append(f"{parameter['name']}: {_type(parameter)}{_default(parameter['default'])}")
    return f"{name}({', '.join(parts)}) -> {_type({'type': returns, 'default': 'required'})}"


def write_stand_in(folder: Path, found: Mapping[str, Any]) -> Path:
    """A package `stand_in` in `folder` whose bindings look like `found`; returns the folder, for PYTHONPATH."""
    package = folder / "stand_in"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f'__version__ = "{found["version"]}"\nprint("a banner, as the real one has")\n'
    )
    (package / "bindings.py").write_text(SOURCE)
    (package / "looks.json").write_text(json.dumps(found))
    return folder


def _type(parameter: Mapping[str, Any]) -> str:
    kind = str(parameter["type"])
    if kind.startswith("Optional["):
        return f"{_plain(kind[len('Optional[') : -1])} | None"
    return _plain(kind) + (" | None" if parameter["default"] == "None" else "")


def _plain(kind: str) -> str:
    if kind.startswith("list["):
        return f"collections.abc.Sequence[{_plain(kind[5:-1])}]"
    known = {
        "timedelta": "datetime.timedelta | float",
        "Tensor": "torch.Tensor",
        "PathLike": "str | os.PathLike",
        "Callable": "collections.abc.Callable[[int, torch.Tensor], None]",
    }
    return known.get(kind) or (f"{MODULE}.{kind}" if kind[0].isupper() and kind != "None" else kind)


def _default(default: object) -> str:
    if default == "required":
        return ""
    if isinstance(default, str) and default.endswith("()"):
        return f" = <{MODULE}.{default[:-2]} object at 0x7f4c88bf6ca0>"
    if isinstance(default, str) and (default == "None" or default[:1].isupper()):
        return f" = {default}"
    return f" = {default!r}"
