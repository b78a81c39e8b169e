"""Keeps gRPC's own log lines off stderr: what they say, the errors of this package say in a sentence.

It has to be imported before gRPC, which reads the variable once. A value that is already set wins.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
