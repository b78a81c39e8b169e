"""The fields of requests: which there are and which of them are served, from the openai package's own types.

A field that OpenAI has and this server does not serve is refused by name, unless it says nothing (null, an empty list,
its default): no request is answered as if it had not said something.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from mixtral_gateway.errors import ApiError, bad_request

Endpoint = Literal["chat", "completions"]

_OPENAI: dict[Endpoint, dict[str, Any]] = {
    "chat": get_type_hints(chat_create_params.CompletionCreateParamsBase),
    "completions": get_type_hints(completion_create_params.CompletionCreateParamsBase),
}
_BOTH = (
    "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream_options",
    "temperature", "top_p", "user", "logprobs",
)  # fmt: skip
_SERVED: dict[Endpoint, tuple[str, ...]] = {
    "chat": (*_BOTH, "messages", "max_completion_tokens", "top_logprobs", "safety_identifier"),
    "completions": (*_BOTH, "prompt", "echo"),
}
# What the values of OpenAI's fields that are not served may be, beside null and empty ones.
_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "function_call": ("none",),
    "parallel_tool_calls": (True, False),  # there are no tools to call
}
_OURS: dict[str, Any] = {
    "top_k": int | None,
    "min_p": float | None,
    "repetition_penalty": float | None,
    "ignore_eos": bool | None,
    "min_tokens": int | None,
    "bad_words": list[str] | None,
}


class _StreamOptions(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    include_usage: bool
    include_obfuscation: bool  # OpenAI's padding against watchers of sizes; the openai client's default is false here


def _validator(name: str, annotation: Any) -> TypeAdapter[Any]:
    if name == "stream_options":
        annotation = _StreamOptions | None
    elif name == "messages":
        annotation = list[dict[str, Any]]  # looked into message by message, for errors that name the place
    elif name == "prompt":
        annotation = str | list[Any]  # as above
    elif name == "logit_bias":
        annotation = dict[str, float] | None
    return TypeAdapter(annotation)


def _validators(endpoint: Endpoint) -> dict[str, TypeAdapter[Any]]:
    fields = {name: _OPENAI[endpoint][name] for name in _SERVED[endpoint] if name in _OPENAI[endpoint]}
    fields |= {"model": str, "stream": bool | None} | _OURS
    return {name: _validator(name, annotation) for name, annotation in fields.items()}


_VALIDATORS: dict[Endpoint, dict[str, TypeAdapter[Any]]] = {
    endpoint: _validators(endpoint) for endpoint in ("chat", "completions")
}
KNOWN: frozenset[str] = frozenset(name for served in _VALIDATORS.values() for name in served)


def validate(endpoint: Endpoint, body: object) -> dict[str, Any]:
    """The fields that say something, of the right types. Raises ApiError naming the field otherwise."""
    if not isinstance(body, Mapping):
        raise bad_request("the body is not a JSON object")
    validators, fields = _VALIDATORS[endpoint], {}
    for name, value in body.items():
        validator = validators.get(name)
        if validator is None:
            _refuse(endpoint, name, value)
        elif value is not None:
            try:
                fields[name] = validator.validate_python(value, strict=True)
            except ValidationError as error:
                raise _wrong_type(name, error) from None
    for name in ("model", "messages" if endpoint == "chat" else "prompt"):
        if name not in fields:
            raise bad_request(f"{name} is missing", name, "missing_required_parameter")
    return fields


def _refuse(endpoint: Endpoint, name: str, value: object) -> None:
    if name not in _OPENAI[endpoint]:
        raise bad_request(f"unknown field: {name[:64]}", name[:64], "unknown_parameter")
    if value in (None, [], {}, "") or any(value == nothing for nothing in _SAYS_NOTHING.get(name, ())):
        return
    raise bad_request(f"{name} is not supported by this server", name, "unsupported_parameter")


def _wrong_type(name: str, error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    inner = "".join(f"[{part}]" if isinstance(part, int) else "" for part in first["loc"])
    return bad_request(f"{name}{inner}: {first['msg'][:200]}", name, "invalid_type")
