"""The Python processes of a server, one per model: Triton goes on calling itself ready when one of them is dead."""

from pathlib import Path

import psutil

STUB = "triton_python_backend_stub"


def live_stubs(server_pid: int) -> dict[str, int]:
    """Process id of the stub of each model, by the model's name. A zombie is not alive. Empty without a server."""
    try:
        children = psutil.Process(server_pid).children()
    except psutil.NoSuchProcess:
        return {}
    found = {}
    for child in children:
        try:
            arguments = child.cmdline()
            if child.status() != psutil.STATUS_ZOMBIE and arguments and Path(arguments[0]).name == STUB:
                found[_model(arguments[1])] = child.pid
        except psutil.NoSuchProcess:
            continue
    return found


def _model(path: str) -> str:
    """REPOSITORY/MODEL/VERSION/model.py"""
    return Path(path).parent.parent.name
