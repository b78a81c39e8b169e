"""Everything that can go wrong between this client and the server, as one hierarchy under `MixtralClientError`.

Triton passes only text on streams, so the server begins its sentence with a code word and Triton puts
"in ensemble 'ensemble', " before it. `parse_server_error` undoes both.
"""

import re

_ENSEMBLE_PREFIX = re.compile(r"^(?:in ensemble '[^']*', )+")
_CODE_WORD = re.compile(r"^([A-Z][A-Z_]+): (.*)$", re.DOTALL)


class MixtralClientError(Exception):
    """Base of all errors of this package; `str(error)` is one sentence for the user."""


class ServerUnreachable(MixtralClientError):
    """No connection could be made, or it broke while a request was running."""


class IdleTimeout(MixtralClientError):
    """The server sent nothing, not even a heartbeat, for the idle timeout; the request was cancelled."""


class ProtocolError(MixtralClientError):
    """The server answered something that this client cannot understand, such as a stream without a final response."""


class ServerError(MixtralClientError):
    """The server refused or failed the request.

    code: the word the server put before its sentence (a gRPC status name), "UNKNOWN" when it gave none, as Triton
    itself does for an input of a wrong type or a model that is not loaded.
    """

    code: str = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidArgument(ServerError):
    """The request is wrong; the sentence names the limit and the value. Also raised before sending, for values that do
    not fit into their tensor and for requests with no prompt or several."""

    code = "INVALID_ARGUMENT"


class Unavailable(ServerError):
    """The server cannot take the request now, because its queue is full or it is shutting down. Worth a retry."""

    code = "UNAVAILABLE"


class Internal(ServerError):
    """The engine could not continue; not the caller's fault."""

    code = "INTERNAL"


class Cancelled(ServerError):
    """The request was cancelled by something other than this client."""

    code = "CANCELLED"


_BY_CODE: dict[str, type[ServerError]] = {cls.code: cls for cls in (InvalidArgument, Unavailable, Internal, Cancelled)}


def server_error(code: str, message: str) -> ServerError:
    """The error for a code word; words without a class of their own give a plain `ServerError` that bears the word."""
    cls = _BY_CODE.get(code)
    return cls(message) if cls is not None else ServerError(message, code)


def parse_server_error(text: str) -> ServerError:
    """Turns a stream's error text into an error: "in ensemble 'ensemble', INVALID_ARGUMENT: max_tokens is 5000, the
    limit is 4096" becomes `InvalidArgument("max_tokens is 5000, the limit is 4096")`."""
    text = _ENSEMBLE_PREFIX.sub("", text.strip())
    match = _CODE_WORD.match(text)
    return server_error(match[1], match[2]) if match else ServerError(text)
