"""One running server: started, waited for, stopped, and everything it leaves behind removed."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from mixtral_runtime.errors import Internal
from mixtral_runtime.manifest import Manifest
from mixtral_serving.counters import CANARY_ID, Counters
from mixtral_serving.counters import ENVIRONMENT as COUNTERS
from mixtral_serving.server.admin_token import token_environment
from mixtral_serving.server.command import (
    EXIT_TIMEOUT_S,
    Address,
    mpirun_command,
    server_command,
    server_environment,
    worker_command,
)
from mixtral_serving.server.installation import Installation, find_installation
from mixtral_serving.server.leftovers import SHM, hold, remove_files
from mixtral_serving.server.local_http import open_local
from mixtral_serving.server.log import LogRelay
from mixtral_serving.server.preflight import load_exposure

GUARD = [sys.executable, "-m", "mixtral_serving.server.guard"]
_READY_ANSWER_S = 2.0
_CRASHES = (signal.SIGABRT, signal.SIGSEGV)
_STOP_GRACE_S = EXIT_TIMEOUT_S + 10


class ServerProcess:
    """A Triton server with all its stubs in a process group of its own. Use it as a context manager: leaving it stops
    the server, kills what is left of the group and removes its shared memory and its work folder."""

    def __init__(
        self,
        repository: Path,
        engine_dir: Path,
        address: Address,
        config: Path | None = None,
        *,
        log: IO[str] = sys.stderr,
        verbose: bool = False,
    ) -> None:
        """`log`: where Triton's log goes, all of it when `verbose`, else what an operator should act on.

        Raises InvalidArgument for settings, or files that they name, that are wrong."""
        self.exposure = load_exposure(config)
        self.address = self.exposure.bind(address)
        self._repository = repository.resolve()
        self._engine_dir = engine_dir.resolve()
        self._config = config.resolve() if config else None
        self._log, self._verbose = log, verbose
        self._relay: LogRelay | None = None
        self.canary_id = secrets.token_hex(16)  # not guessable: the engine keeps a place for it
        self._shm_prefix = _new_prefix()
        self._crashed_starting = False
        self._counters: Counters | None = None
        self._lock: int | None = None  # says that this launcher is alive
        self._guard: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "ServerProcess":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        # A neutral working directory: the stub puts it first on its module path.
        work_dir = Path(tempfile.mkdtemp(prefix=self._shm_prefix))
        installation = find_installation(work_dir)
        counters = SHM / f"{self._shm_prefix}counters"
        self._lock = hold(counters)
        self._counters = Counters(counters)
        # In a session of its own: whatever hits the launcher's group does not hit it.
        self._guard = subprocess.Popen([*GUARD, self._shm_prefix], stdin=subprocess.PIPE, start_new_session=True)
        python_bin = Path(sys.executable).parent
        environment = server_environment(os.environ, installation, python_bin, self._engine_dir, self._config)
        if self.exposure.token_file is not None:
            environment |= token_environment(self.exposure.token_file, work_dir, environment)
        command = self._command(installation, Manifest.load(self._engine_dir).world_size)
        self.process = subprocess.Popen(
            command,
            env=environment | {COUNTERS: str(self._counters.path), CANARY_ID: self.canary_id},
            cwd=work_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._relay = LogRelay(self.process.stdout, self._log, self._verbose)

    def _command(self, installation: Installation, world_size: int) -> list[str]:
        arguments = self.exposure.arguments()
        server = server_command(installation, self._repository, self.address, self._shm_prefix, arguments)
        if world_size == 1:
            return server
        prefixes = [f"{self._shm_prefix}rank{rank}-" for rank in range(1, world_size)]
        return mpirun_command(
            [server, *(worker_command(installation, self._repository, prefix) for prefix in prefixes)]
        )

    def wait_until_ready(self, timeout_s: float) -> None:
        """Raises Internal when the server ends or is not ready in time."""
        assert self.process is not None
        assert self._relay is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                self._relay.join(2)
                if -code in _CRASHES and self._relay.failure is None and not self._crashed_starting:
                    self._start_again()
                    continue
                reason = self._relay.failure or f"exit code {code}; start it with --verbose to see its log"
                raise Internal(f"the server ended while starting: {reason}")
            if self.is_ready():
                self._close_shared_memory()
                return
            time.sleep(0.1)
        raise Internal(
            f"the server was not ready after {timeout_s:g} s; start it with --verbose to see how far it came"
        )

    def _start_again(self) -> None:
        """Triton's stubs race for a lock at their start, and on a busy machine one of them aborts the server now and
        then. Once may be that; twice is something else."""
        self._crashed_starting = True
        self._log.write("the server crashed while starting and is started once more\n")
        self.stop()
        self._shm_prefix = _new_prefix()
        self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def counters(self) -> Counters:
        assert self._counters is not None
        return self._counters

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def is_ready(self) -> bool:
        """What Triton says of itself, which leaves its stubs out. A server that stands still is not ready."""
        try:
            with open_local(f"{self.address.local_http}/v2/health/ready", _READY_ANSWER_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _close_shared_memory(self) -> None:
        """Prompts will pass through it, and Triton makes it readable for every user, whatever the umask."""
        for region in SHM.glob(f"{self._shm_prefix}*"):
            region.chmod(0o600)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait()

    def kill(self) -> None:
        """The whole group and what descended from it, at once: what is broken is not asked to end. Of several ranks
        each has a group of its own."""
        if self.process is not None:
            for process in _descendants(self.process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Asks the server itself; its stubs end with it, and so do the ranks that work for it. mpirun is not asked: it
        would kill them all a second later, whatever they are doing."""
        if self.process is None or self.process.poll() is not None:
            return
        leader = f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}"
        for process in _descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if leader in process.cmdline():
                    process.send_signal(number)
                    return
        self.process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the whole group and what descended from it: a crashed server can hang in its own
        signal handler, stubs have been seen to outlive it, and mpirun gives every rank a group of its own."""
        if self.process is not None:
            descendants = _descendants(self.process.pid)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_GRACE_S)
            self.kill()
            for process in descendants:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        if self._counters is not None:
            self._counters.close()
            self._counters = None
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None
        remove_files(self._shm_prefix)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _new_prefix() -> str:
    """Of everything in shared memory and of the work folder of one start."""
    return f"mixtral-{os.getpid()}-{time.monotonic_ns():x}-"


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []
