"""Runs a command that ends when the process that started it is gone: python child.py PARENT_PID COMMAND...

Linux sends a signal of choice on the death of a process's parent, precisely of the thread that started it (prctl(2)),
and still does so when the process has become another program. A gateway without its launcher would hold its port, and
ask a server that is gone.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
