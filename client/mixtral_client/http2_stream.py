"""One stream of an HTTP/2 connection: who is told of it, and how it fails."""

from typing import Protocol

import grpc
from h2.errors import ErrorCodes


class StreamFailed(grpc.RpcError):  # type: ignore[misc]
    """As gRPC's own: `code` and `details`."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class Call(Protocol):
    """What a connection tells of a stream."""

    def received(self, data: bytes) -> None: ...
    def headers(self, headers: list[tuple[bytes, bytes]]) -> None: ...
    def end(self) -> None: ...
    def fail(self, failure: StreamFailed) -> None: ...
    def refused(self, failure: StreamFailed) -> None: ...  # as fail, and the server has surely done nothing for it
    def wake(self) -> None: ...  # the server takes more


def failure_of_reset(error_code: int) -> StreamFailed:
    """gRPC's status for a stream that the server broke off, by HTTP/2's code."""
    if error_code == ErrorCodes.REFUSED_STREAM:
        return StreamFailed(grpc.StatusCode.UNAVAILABLE, "the server refused the stream")
    if error_code == ErrorCodes.CANCEL:
        return StreamFailed(grpc.StatusCode.CANCELLED, "the server cancelled the stream")
    details = f"the server broke the stream off (HTTP/2 error {int(error_code)})"
    return StreamFailed(grpc.StatusCode.INTERNAL, details)
