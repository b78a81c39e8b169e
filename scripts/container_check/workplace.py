"""What every check is given: where it may write, what is tested, and the machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from container_check.machine import Gpu, Machine
from mixtral_runtime.injection import PLUGIN_PATH
from mixtral_runtime.tensorrt_llm.bindings import INJECTED

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended: its exit status, and stdout and stderr as one text."""

    status: int
    output: str

    @property
    def last_lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.strip()][-LAST_LINES:]


@dataclass(frozen=True, slots=True)
class Workplace:
    """folder: checks leave there what later ones read, and programs their logs. model: the Hugging Face model that
    engines are built of. library, bindings: the modules that are compared with the record. app: where the image keeps
    NVIDIA's models and examples. environment: more variables for the programs that are started. build_for: the --gpu of
    `mixtral-build engine`."""

    folder: Path
    model: Path
    machine: Machine
    library: str = "tensorrt_llm"
    bindings: str = "tensorrt_llm.bindings.executor"
    app: Path = Path("/app")
    environment: Mapping[str, str] = field(default_factory=dict)
    build_for: str = "auto"

    @property
    def gpu(self) -> Gpu | None:
        """The one that programs take when nobody chooses."""
        return self.machine.gpus[0] if self.machine.gpus else None

    def program(self, name: str, *arguments: object, timeout_s: float) -> Finished:
        """Runs one of `programs/` with this Python."""
        command = [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]
        return self.run(command, log=name, timeout_s=timeout_s)

    def command(self, name: str, *arguments: object, log: str, timeout_s: float) -> Finished:
        """Runs a program that was installed with this Python, or else one on PATH."""
        beside = Path(sys.executable).parent / name
        program = str(beside) if beside.is_file() else (shutil.which(name) or name)
        return self.run([program, *map(str, arguments)], log=log, timeout_s=timeout_s)

    def run(self, command: Sequence[str], *, log: str, timeout_s: float) -> Finished:
        """Its output goes to `log`.log in the folder too. Raises TimeoutExpired once it and its children are killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{log}.log"
        with path.open("w", encoding="utf-8") as output:
            # A session of its own, so that what it started ends with it: builders and servers have children.
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.variables(),
                start_new_session=True,
            )
            try:
                status = process.wait(timeout_s)
            except BaseException:
                kill_group(process)
                raise
        return Finished(status, path.read_text(encoding="utf-8", errors="replace"))

    def variables(self) -> dict[str, str]:
        """Without what would put another library in the place of the one that is to be checked."""
        inherited = {name: value for name, value in os.environ.items() if name not in (INJECTED, PLUGIN_PATH)}
        return {**inherited, **self.environment}


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
