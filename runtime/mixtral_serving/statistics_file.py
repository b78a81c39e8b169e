"""The engine's statistics on their way to `engine_info`: a file in shared memory, beside the counters.

Not a tensor: the stub of Triton 2.51 takes in the tensors of responses to a model's own decoupled calls on a thread
that does not hold Python's lock, which corrupts its memory once in some thousand calls. A response without any is safe.
"""

import json
import os
from pathlib import Path
from typing import Any

from mixtral_serving.counters import Counters


def path_beside(counters: Counters) -> Path:
    """Of the same prefix, so that it is cleaned up with them."""
    return counters.path.with_name(counters.path.name.removesuffix("counters") + "statistics")


def write(path: Path, statistics: dict[str, Any]) -> None:
    """Readers see the old ones or the new ones, never a part."""
    unfinished = path.with_name(f"{path.name}-{os.getpid()}")
    unfinished.touch(0o600)
    unfinished.write_text(json.dumps(statistics), encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Raises OSError when none were written."""
    statistics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return statistics
