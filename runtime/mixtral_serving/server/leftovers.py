"""What a launcher leaves behind that was killed itself: its server, its stubs, their shared memory, a work folder.

Everything of a server bears a prefix of its own, mixtral-PID-TIME-. The launcher keeps the file of its counters locked:
the kernel drops the lock when the launcher is gone, however it went. A process id alone could mislead, since another
container may share the memory and know that process by another number.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
_COUNTERS = re.compile(r"(mixtral-(\d+)-[0-9a-f]+-)counters")
_END_S = 5.0


def hold(counters: Path) -> int:
    """Creates and locks the file of a server's counters, for as long as the descriptor it returns is open. The
    processes that the caller starts do not get it."""
    descriptor = os.open(counters, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def remove_leftovers() -> int:
    """Ends what launchers that are gone have left on this machine and removes their files. Returns how many processes
    had to be ended. What belongs to another user stays."""
    return sum(remove(prefix) for prefix in _abandoned())


def remove_files(prefix: str) -> None:
    """Shared memory and work folder of one server."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for region in SHM.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _abandoned() -> Iterator[str]:
    """The prefixes of servers whose launcher is gone."""
    for path in SHM.glob("mixtral-*-counters"):
        found = _COUNTERS.fullmatch(path.name)
        if found is None or (int(found[2]) != os.getpid() and psutil.pid_exists(int(found[2]))):
            continue
        try:
            file = path.open("r+b")
        except OSError:
            continue
        with file:
            if os.fstat(file.fileno()).st_size == 0:  # its launcher has made it and is about to lock it
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield found[1]


def remove(prefix: str) -> int:
    """Ends all processes but this that bear a prefix, and removes their files. Returns how many there were."""
    ended = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(prefix in argument for argument in process.cmdline()):
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, _END_S)
    remove_files(prefix)
    return len(ended)
