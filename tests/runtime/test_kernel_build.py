"""Compiling, keeping and choosing the CPU kernels, in processes of their own and with the smallest source alone."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtral_runtime.errors import InvalidArgument
from mixtral_runtime.kernels import VARIABLE, cpu_path, dispatch
from mixtral_runtime.kernels.native import CACHE_VARIABLE, SOURCES

PROGRAM = """
import logging, sys
from pathlib import Path
from mixtral_runtime.kernels import native, cpu_path
logging.basicConfig(level=logging.INFO, format="%(message)s")
native.SOURCES = Path(sys.argv[1])
print(cpu_path(), cpu_path())
"""
# Writes a line for each call, then is the compiler; for the source itself it waits while there is a file `wait`.
COMPILER = """#!/bin/sh
echo "$@" >>{folder}/calls
case "$*" in *path.cpp*) while [ -e {folder}/wait ]; do sleep 0.05; done ;; esac
exec c++ "$@"
"""

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


class Workshop:
    """A folder with the smallest source, an empty cache and a compiler that counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.sources = folder / "sources"
        self.sources.mkdir()
        for name in ("path.cpp", "path.h"):
            shutil.copy(SOURCES / name, self.sources)
        self.compiler = folder / "compiler"
        self.compiler.write_text(COMPILER.format(folder=folder))
        self.compiler.chmod(0o755)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        settings = {CACHE_VARIABLE: str(self.cache), "CXX": str(self.compiler), VARIABLE: "auto"}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.sources)],
            env=os.environ | settings | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> tuple[str, str]:
        """What was printed, and what the log says."""
        process = self.start(**environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out.split()[0], err

    def compiled(self) -> int:
        calls = self.folder / "calls"
        return calls.read_text().count("path.cpp") if calls.exists() else 0

    def kept(self) -> list[str]:
        return sorted(path.suffix for path in self.cache.iterdir())


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_processes_that_start_together_compile_once(workshop: Workshop) -> None:
    processes = [workshop.start() for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert len({path for out, _ in answers for path in out.split()}) == 1
    assert "none" not in answers[0][0]
    assert workshop.compiled() == 1
    assert sum("compiling the CPU kernels" in err for _, err in answers) == 1
    assert workshop.kept() == [".lock", ".so"]


def test_a_killed_compilation_is_begun_again(workshop: Workshop) -> None:
    (workshop.folder / "wait").touch()
    process = workshop.start()
    deadline = time.monotonic() + 120
    while not workshop.compiled() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(workshop.kept()) == 2  # its lock, and its folder
    (workshop.folder / "wait").unlink()
    path, log = workshop.run()
    assert path != "none"
    assert "compiling" in log
    assert workshop.kept() == [".lock", ".so"]


def test_what_was_compiled_serves_without_a_compiler_until_the_sources_change(workshop: Workshop) -> None:
    workshop.run()
    path, log = workshop.run(CXX="no-such-compiler")
    assert path != "none"
    assert log == ""
    with (workshop.sources / "path.h").open("a") as header:
        header.write("// changed\n")
    workshop.run()
    assert workshop.compiled() == 2


def test_without_a_compiler_plain_pytorch_is_used_and_it_is_said_once(workshop: Workshop) -> None:
    path, log = workshop.run(CXX="no-such-compiler")
    assert path == "none"
    assert log.count("\n") == 1
    assert "there is no compiler no-such-compiler; install g++" in log


def test_what_the_compiler_refuses_is_said_in_one_line(workshop: Workshop) -> None:
    (workshop.sources / "path.h").write_text("#error this compiler is too old\n")
    path, log = workshop.run()
    assert path == "none"
    assert "could not be compiled" in log
    assert "#error this compiler is too old" in log
    assert workshop.kept() == [".lock"]


def test_a_folder_that_cannot_be_written_is_said_and_done_without(workshop: Workshop) -> None:
    workshop.cache.touch()  # a file: no permission keeps root out
    path, log = workshop.run()
    assert path != "none"
    assert "cannot be kept (" in log
    assert f"set {CACHE_VARIABLE} to a writable folder" in log


def test_the_environment_need_not_be_activated(workshop: Workshop, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("c++", "as", "ld", "sh", "sleep"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    path, _ = workshop.run(PATH=str(programs))
    assert path != "none"


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """choose("avx2"): the path that a process with that value would take; afterwards all is as before."""

    def make(value: str) -> str:
        monkeypatch.setenv(VARIABLE, value)
        return cpu_path.__wrapped__()

    yield make
    cpu_path.cache_clear()
    monkeypatch.undo()
    cpu_path()


def test_every_path_of_this_cpu_can_be_asked_for(choose: Any) -> None:
    best = choose("auto")
    for name in dispatch.PATHS[: dispatch.PATHS.index(best) + 1]:
        assert choose(name) == name


def test_an_unknown_path_is_refused(choose: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"{VARIABLE} is sse, there are auto, none, avx2, avx512, amx"):
        choose("sse")


def test_a_path_that_the_cpu_lacks_is_refused(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose("auto")
    monkeypatch.setattr(torch.ops.mixtral_cpu, "best_path", lambda: dispatch.PATHS.index("avx2"))
    with pytest.raises(InvalidArgument, match=f"{VARIABLE} is amx, this CPU has avx2 at most"):
        choose("amx")
    assert choose("auto") == "avx2"


def test_a_path_that_cannot_be_compiled_is_refused_with_the_reason(
    choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "load_kernels", lambda: "there is no compiler")
    with pytest.raises(InvalidArgument, match=f"{VARIABLE} is avx2, there is no compiler"):
        choose("avx2")
    assert choose("auto") == "none"
