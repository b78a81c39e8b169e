"""Whether the installed openai has what TensorRT-LLM imports from it is told without importing TensorRT-LLM."""

from pathlib import Path

from openai_imports import imported_names, lacking


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_imports_that_run_when_the_package_is_imported_are_found(tmp_path: Path) -> None:
    write(tmp_path, "__init__.py", "raise ImportError")
    write(
        tmp_path,
        "serve/a.py",
        "from openai.types import (\n    One,\n    Two as Other)\nfrom openai_harmony import Role\n",
    )
    write(
        tmp_path,
        "serve/b.py",
        "def f():\n    from openai import Later\ntry:\n    from openai import Maybe\nexcept: ...\n",
    )
    write(tmp_path, "serve/c.py", "from .openai import Own\n")
    assert sorted(imported_names(tmp_path)) == [("openai.types", "One"), ("openai.types", "Two")]


def test_what_is_lacking_is_named() -> None:
    names = [("pathlib", "Path"), ("pathlib", "Pat"), ("pathlib.nowhere", "Path")]
    assert lacking(iter(names)) == ["pathlib.Pat", "pathlib.nowhere.Path"]
