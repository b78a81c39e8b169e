"""A request as the model server's client understands it: what to generate, how often, and what the answer shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixtral_client import GenerationOptions, Message
from mixtral_gateway.errors import bad_request, no_such_model
from mixtral_gateway.fields import Endpoint, validate
from mixtral_gateway.settings import Settings

COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions; a chat may fill the model's length
MOST_ALTERNATIVES = 20
LARGEST_PENALTY = 2  # OpenAI's limit; the server's own is 100
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UINT64 = 2**64


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of the three."""

    text: str | None = None
    ids: list[int] | None = None
    messages: list[Message] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """prompts, each answered n times. alternatives: log probabilities with so many alternatives, None for none.
    scores_only: the prompt is wanted and no token of the answer. whole_length: the answer may be as long as the model
    allows."""

    endpoint: Endpoint
    model: str
    prompts: list[Prompt]
    n: int
    options: GenerationOptions
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    alternatives: int | None = None
    scores_only: bool = False
    whole_length: bool = False

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n

    def options_of(self, choice: int) -> GenerationOptions:
        """With a seed, the answers to one prompt have seeds of their own: else they would be the same."""
        if self.options.seed is None or self.n == 1:
            return self.options
        return replace(self.options, seed=(self.options.seed + choice % self.n) % _UINT64)


def read_job(endpoint: Endpoint, body: object, settings: Settings) -> Job:
    """Raises ApiError naming the field that is wrong. Ranges of what only the engine knows are left to the server."""
    fields = validate(endpoint, body)
    if fields["model"] not in settings.models:
        raise no_such_model(fields["model"])
    stream_options = fields.get("stream_options") or {}
    if stream_options and not fields.get("stream"):
        raise bad_request("stream_options is given and stream is not true", "stream_options")
    n = fields.get("n", 1)
    echo = bool(fields.get("echo"))
    prompts = [Prompt(messages=read_messages(fields["messages"]))] if endpoint == "chat" else read_prompts(fields)
    if not 1 <= n <= settings.max_choices or n * len(prompts) > settings.max_choices:
        raise bad_request(
            f"n is {n} for {len(prompts)} prompts, their product must be from 1 to {settings.max_choices}", "n"
        )
    alternatives = _alternatives(endpoint, fields)
    max_tokens = _max_tokens(endpoint, fields)
    scores_only = max_tokens == 0 and echo
    return Job(
        endpoint=endpoint,
        model=settings.models[0],
        prompts=prompts,
        n=n,
        options=_options(fields, 1 if scores_only else max_tokens, alternatives, echo, settings),
        stream=bool(fields.get("stream")),
        include_usage=bool(stream_options.get("include_usage")),
        echo=echo,
        alternatives=alternatives,
        scores_only=scores_only,
        whole_length=max_tokens is None,
    )


def read_messages(messages: list[dict[str, Any]]) -> list[Message]:
    """Text alone: content is a string, or a list of text parts, which are joined."""
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(where: str, message: dict[str, Any]) -> Message:
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], {}, ""):
            raise bad_request(f"{where}.{name[:64]} is not supported by this server", "messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(_ROLES)}", "messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_request(f"{where}.content must be a string or a list of text parts", "messages")
    return Message(role=_ROLES[role], content=content)


def _part(where: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    raise bad_request(f"{where} is not a text part; this server takes only text", "messages")


def read_prompts(fields: dict[str, Any]) -> list[Prompt]:
    """A string, a list of strings, a list of token ids, or a list of such lists."""
    prompt = fields["prompt"]
    if isinstance(prompt, str):
        return [Prompt(text=prompt)]
    if prompt and all(isinstance(item, str) for item in prompt):
        return [Prompt(text=text) for text in prompt]
    if _are_ids(prompt):
        return [Prompt(ids=prompt)]
    if prompt and all(isinstance(item, list) and _are_ids(item) for item in prompt):
        return [Prompt(ids=ids) for ids in prompt]
    raise bad_request(
        "prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt"
    )


def _are_ids(value: Sequence[Any]) -> bool:
    return bool(value) and all(type(item) is int for item in value)


def _alternatives(endpoint: Endpoint, fields: dict[str, Any]) -> int | None:
    name, count = "logprobs", fields.get("logprobs")
    if endpoint == "chat":
        name, count = "top_logprobs", fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        if count is None and fields.get("top_logprobs"):
            raise bad_request("top_logprobs is given and logprobs is not true", name)
    if count is not None and not 0 <= count <= MOST_ALTERNATIVES:
        raise bad_request(f"{name} is {count}, it must be from 0 to {MOST_ALTERNATIVES}", name)
    return count


def _max_tokens(endpoint: Endpoint, fields: dict[str, Any]) -> int | None:
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise bad_request("max_tokens and max_completion_tokens are given, it must be one of them", "max_tokens")
    name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    value: int | None = fields.get(name, COMPLETION_TOKENS if endpoint == "completions" else None)
    least = 0 if fields.get("echo") else 1
    if value is not None and value < least:
        raise bad_request(f"{name} is {value}, it must be at least {least}", name)
    return value


def _options(
    fields: dict[str, Any], max_tokens: int | None, alternatives: int | None, echo: bool, settings: Settings
) -> GenerationOptions:
    stop = fields.get("stop", [])
    deadline = settings.request_timeout_s
    seed = fields.get("seed")
    with_log_probs = alternatives is not None
    return GenerationOptions(
        max_tokens=max_tokens or 1,
        stop_words=(stop,) if isinstance(stop, str) else tuple(stop),
        temperature=fields.get("temperature", 1.0),  # OpenAI's default; the server's own is greedy
        top_k=fields.get("top_k"),
        top_p=fields.get("top_p"),
        min_p=fields.get("min_p"),
        repetition_penalty=fields.get("repetition_penalty"),
        presence_penalty=_penalty(fields, "presence_penalty"),
        frequency_penalty=_penalty(fields, "frequency_penalty"),
        logit_bias=tuple(_biases(fields.get("logit_bias", {}))),
        min_tokens=fields.get("min_tokens"),
        bad_words=tuple(fields.get("bad_words", ())),
        seed=None if seed is None else seed % _UINT64,  # OpenAI's is signed
        exclude_input_in_output=False if echo else None,
        ignore_eos=fields.get("ignore_eos"),
        timeout_ms=None if deadline is None else max(1, round(deadline * 1000)),
        return_output_ids=with_log_probs,
        return_log_probs=with_log_probs,
        return_prompt_log_probs=with_log_probs and echo,
        top_log_probs=alternatives or None,
    )


def _penalty(fields: dict[str, Any], name: str) -> float | None:
    value: float | None = fields.get(name)
    if value is not None and not -LARGEST_PENALTY <= value <= LARGEST_PENALTY:
        raise bad_request(f"{name} is {value}, it must be from {-LARGEST_PENALTY} to {LARGEST_PENALTY}", name)
    return value


def _biases(given: dict[str, float]) -> Iterator[tuple[int, float]]:
    for token, bias in given.items():
        if not token.isdecimal() or not token.isascii() or len(token) > 9:
            raise bad_request(f"logit_bias names {token[:64]!r}, which is not a token id", "logit_bias")
        if not -100 <= bias <= 100:
            raise bad_request(f"logit_bias of token {token} is {bias}, it must be from -100 to 100", "logit_bias")
        yield int(token), bias
