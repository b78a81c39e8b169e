"""Wheels made on the spot, so that a scratch environment needs no index: real packages packed again, and stand-ins."""

import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

NOT_PACKED = ("INSTALLER", "REQUESTED", "direct_url.json")


def pack_installed(name: str, folder: Path) -> None:
    """A wheel of a package of this environment, in the version that is here."""
    found = distribution(name)
    assert found.files is not None
    wheel = found.read_text("WHEEL")
    assert wheel is not None
    tag = next(line.removeprefix("Tag: ") for line in wheel.splitlines() if line.startswith("Tag: "))
    path = folder / f"{found.name.replace('-', '_')}-{found.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:  # stored: it is unpacked at once
        for file in found.files:
            if file.parts[0] != ".." and file.suffix != ".pyc" and file.name not in NOT_PACKED:
                archive.write(str(file.locate()), str(file))


def with_dependencies(requirements: list[str]) -> set[str]:
    """The names of the packages of this environment that a requirement such as `name[extra]` takes, itself included."""
    found: set[str] = set()
    waiting = [Requirement(requirement) for requirement in requirements]
    while waiting:
        wanted = waiting.pop()
        for line in requires(wanted.name) or []:
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
        found.add(wanted.name)
    return found


def make_stand_in(name: str, version: str, folder: Path, modules: dict[str, str] | None = None) -> Path:
    """A wheel with that name and version. modules: path to source, an empty package without."""
    package = name.replace("-", "_")
    path = folder / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    files = {
        **(modules or {f"{package}/__init__.py": ""}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path
