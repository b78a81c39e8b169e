"""What goes wrong, as OpenAI's API tells it: an HTTP status and an error object."""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from mixtral_client import IdleTimeout, MixtralClientError, ServerError, ServerUnreachable

INVALID_REQUEST = "invalid_request_error"
RETRY_AFTER_S = 1
CLIENT_LEFT = 499  # nginx's status for the log; nobody is there to receive it

# The server's sentences begin with its own names of the inputs.
_PARAMETERS = {
    "stop": "stop",
    "text_input": "prompt",
    "input_ids": "prompt",
    "prompt": "prompt",
    "message": "messages",
    "messages": "messages",
    "top_log_probs": "top_logprobs",
    "return_log_probs": "logprobs",
    "return_prompt_log_probs": "logprobs",
    "timeout_ms": None,
    "logit_bias_ids": "logit_bias",
    "logit_bias_values": "logit_bias",
}
_FIRST_NAME = re.compile(r"^(?:(?:the|there are \d+) )?([a-z_]+)")


@dataclass(frozen=True, slots=True)
class ApiError(Exception):
    """status: HTTP's. kind: OpenAI's `type`. code: a word for programs. param: the request field at fault."""

    status: int
    message: str
    kind: str = INVALID_REQUEST
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return orjson.dumps(self.to_json())

    def event(self) -> bytes:
        """As the last event of a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def no_such_model(name: str) -> ApiError:
    return ApiError(
        404, f"the model {name[:100]!r} does not exist, see /v1/models", param="model", code="model_not_found"
    )


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, "server_error", "service_unavailable", retry_after_s=RETRY_AFTER_S)


def timed_out() -> ApiError:
    return ApiError(408, "the generation did not end before its deadline", "timeout_error", "timeout")


def internal() -> ApiError:
    return ApiError(500, "the gateway failed on this request, see its log", "server_error", "internal_error")


def from_client_error(error: MixtralClientError, known: frozenset[str] = frozenset()) -> ApiError:
    """known: the fields that the request may have, so that `param` never names something that is not one."""
    message = str(error)
    if isinstance(error, ServerUnreachable):
        return unavailable("the model server cannot be reached")  # its address is not the caller's concern
    if isinstance(error, IdleTimeout):
        return ApiError(504, "the model server sent nothing for too long", "server_error", "upstream_timeout")
    code = error.code if isinstance(error, ServerError) else "INTERNAL"
    if code == "INVALID_ARGUMENT":
        return bad_request(message, _parameter(message, known))
    if code == "UNAVAILABLE" and "queue is full" in message:
        return ApiError(429, message, "rate_limit_error", "queue_full", retry_after_s=RETRY_AFTER_S)
    if code in ("UNAVAILABLE", "CANCELLED") or "is not ready" in message:
        return unavailable(message)
    if code == "DEADLINE_EXCEEDED":
        return timed_out()
    # Sentences without a code word are Triton's own and may name what is inside the server.
    text = message if code == "INTERNAL" and isinstance(error, ServerError) else "the model server failed"
    return ApiError(500, text, "server_error", "internal_error")


def _parameter(message: str, known: frozenset[str]) -> str | None:
    found = _FIRST_NAME.match(message)
    name = _PARAMETERS.get(found[1], found[1]) if found else None
    return name if name in known else None
