"""The Python processes of a server, one per model: Triton goes on calling itself ready when one of them is dead."""

from pathlib import Path

import psutil

STUB = "triton_python_backend_stub"


def live_stubs(pid: int) -> dict[int, str]:
    """The model of each stub below a server, or below the mpirun of several, by the stub's process id.

    A zombie is not alive. Empty without a server.
    """
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return {}
    found = {}
    for process in below:
        try:
            arguments = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and arguments and Path(arguments[0]).name == STUB:
                found[process.pid] = Path(arguments[1]).parent.parent.name  # REPOSITORY/MODEL/VERSION/model.py
        except psutil.NoSuchProcess:
            continue
    return found
