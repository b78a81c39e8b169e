"""Numbers that the processes of one server share: each has one writer, the others read it, and nobody waits.

They sit in a file in shared memory. The launcher names it (MIXTRAL_COUNTERS); without a launcher the name comes from
the server's process id, which all its stubs have as parent.
"""

import mmap
import os
from enum import IntEnum
from pathlib import Path

ENVIRONMENT = "MIXTRAL_COUNTERS"
CANARY_ID = "MIXTRAL_CANARY_ID"  # environment variable with the request id of the supervisor's own requests


class Counter(IntEnum):
    """Who writes: SENT, LIVE, PROGRESS the engine model, HANDLED the detokenizer, DRAIN the supervisor."""

    SENT = 0  # responses of ensemble requests handed to the server, since start
    HANDLED = 1  # of those, how many the detokenizer has answered
    LIVE = 2  # requests in the engine model now
    PROGRESS = 3  # the engine's steps as the sending thread last saw them: it stands still when either is stuck
    DRAIN = 4  # a Drain value


class Drain(IntEnum):
    """NONE: all requests are taken. REFUSE: new ones are refused. END: running ones end now, with an error."""

    NONE = 0
    REFUSE = 1
    END = 2


class Counters:
    """The values by `Counter`, whole numbers below 2**64. One aligned 8-byte store each, so never half written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = len(Counter) * 8
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self.values = memoryview(self._map).cast("Q")  # for who reads them with every response

    @classmethod
    def of_server(cls) -> "Counters":
        """Those of the server that this process, a stub of it, belongs to."""
        named = os.environ.get(ENVIRONMENT)
        return cls(Path(named) if named else Path(f"/dev/shm/mixtral-server-{os.getppid()}-counters"))

    def __getitem__(self, counter: Counter) -> int:
        return self.values[counter]

    def __setitem__(self, counter: Counter, value: int) -> None:
        self.values[counter] = value

    def increment(self, counter: Counter) -> None:
        """For the one that writes it."""
        self.values[counter] += 1

    def close(self) -> None:
        self.values.release()
        self._map.close()
