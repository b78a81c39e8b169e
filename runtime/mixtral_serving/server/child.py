"""Runs a command that is told to end when the process that started it is gone: python child.py PARENT_PID COMMAND...

Linux sends a signal of choice on the death of a process's parent, precisely of the thread that started it (prctl(2)),
and still does so when the process has become another program. So a server whose launcher was killed ends by itself, in
good order, unless it hangs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        sys.exit(1)
    # Its log goes to the launcher. Without a reader, a line of it must not be what ends the server.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
