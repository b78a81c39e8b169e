"""What the sync and the async client share about the gRPC channel."""

from typing import Any

import grpc

from mixtral_client.errors import (
    IdleTimeout,
    MixtralClientError,
    ServerError,
    ServerUnreachable,
    parse_server_error,
    server_error,
)
from mixtral_client.tls import TlsOptions, explain_failure

DEFAULT_URL = "localhost:8001"
DEFAULT_IDLE_TIMEOUT_S = 60.0

# After the final response or an error the server only has to close the stream. Waiting for that, instead of
# cancelling, keeps a cancel from racing with the server's own clean-up: Triton 2.51 never closes the connection of a
# stream that was cancelled after an error.
CLOSE_TIMEOUT_S = 1.0

# gRPC's default of 4 MiB is less than the prompt log probabilities of a long prompt with alternatives. And by default
# its pauses between attempts to connect grow to two minutes, as long as a loaded server would go on being called away.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


def idle_message(url: str, idle_timeout_s: float) -> str:
    return f"{url} sent nothing for {idle_timeout_s:g} s (idle timeout), the request was cancelled"


def open_channel(api: Any, url: str, tls: TlsOptions | None) -> Any:
    """A channel of `api`, which is grpc or grpc.aio. Raises InvalidArgument for files that TLS cannot use."""
    if tls is None:
        return api.insecure_channel(url, options=CHANNEL_OPTIONS)
    return api.secure_channel(url, tls.credentials(), options=CHANNEL_OPTIONS)


def from_rpc_error(
    error: grpc.RpcError, url: str, tls: TlsOptions | None = None, *, connected: bool
) -> MixtralClientError:
    """Turns a failed gRPC call into an error. connected: whether a response of this call had already arrived."""
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.UNAVAILABLE:
        if explained := explain_failure(details, url, tls):
            return ServerUnreachable(explained)
        what = "lost the connection to" if connected else "cannot reach"
        # gRPC's details run from the general to the particular: "failed to connect to all addresses; last error:
        # UNKNOWN: ipv4:127.0.0.1:8001: Failed to connect to remote host: Connection refused".
        return ServerUnreachable(f"{what} {url}: {details.rsplit(': ', 1)[-1].rstrip(']')}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return IdleTimeout(f"{url} did not answer in time")
    parsed = parse_server_error(details)
    return parsed if parsed.code != ServerError.code else server_error(code.name, str(parsed))
