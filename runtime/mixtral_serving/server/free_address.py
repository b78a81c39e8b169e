"""An address for a server that is started for a while: a demonstration, a measurement, a test."""

import contextlib
import socket

from mixtral_serving.server.command import Address


def free_address() -> Address:
    """Four ports of the loopback address that nobody has at this moment."""
    with contextlib.ExitStack() as probes:
        ports = []
        for _ in range(4):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    http, grpc, metrics, health = ports
    return Address("127.0.0.1", http, grpc, metrics, health)
