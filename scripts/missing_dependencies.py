"""Prints those of our dependencies that the active environment lacks, in our versions, one to a line.

Python's own library alone: it runs before anything of ours is installed.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def missing(requirements: list[str]) -> list[str]:
    """Of requirements such as `name[extra]==1.2`, those whose package is not installed in any version. One that is
    there may lack what its extra needs, so it is asked for again, without a version."""
    found = []
    for requirement in requirements:
        pinned, _, _ = requirement.partition("==")
        name, bracket, _ = pinned.partition("[")
        if not _installed(name):
            found.append(requirement)
        elif bracket:
            found.append(pinned)
    return found


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    print(*missing(project["dependencies"] + project["optional-dependencies"]["gateway"]), sep="\n", end="")
