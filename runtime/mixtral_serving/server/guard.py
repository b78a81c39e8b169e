"""Waits beside a launcher and, should that be killed, ends its server: one without it would hold ports and GPU.

`python -m mixtral_serving.server.guard PREFIX`, with a pipe from the launcher as standard input. It is a process apart,
since no other can do it: Triton, asked to end, leaves running requests without an answer, and a model's process whose
server is gone can wait for its reply for ever, Python's lock in hand.
"""

import sys

from mixtral_serving.server.leftovers import remove

if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when the launcher closes the pipe, or the kernel does it for the dead one
    remove(sys.argv[1])
