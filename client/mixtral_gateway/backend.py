"""The model server as the gateway knows it: what it serves, and whether it can."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

from mixtral_client import AsyncClient, MixtralClientError, ServerError, ServerStatus
from mixtral_gateway.errors import bad_request, from_client_error, unavailable
from mixtral_gateway.jobs import Job, Prompt
from mixtral_gateway.settings import Settings

PROBE_TIMEOUT_S = 5.0
PROBE_AGE_S = 1.0  # so that health checks cannot load the server
_OPTIONAL_INPUTS = {  # options whose tensors an older server lacks
    "logit_bias": "logit_bias_ids",
    "min_tokens": "min_tokens",
    "bad_words": "bad_words",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: each token's bytes by its id; of special tokens, which have no text, the name."""

    tokens: list[bytes]
    special: frozenset[int]

    def token(self, index: int) -> bytes:
        return self.tokens[index] if 0 <= index < len(self.tokens) else b""

    def text(self, ids: list[int]) -> str:
        """Of a prompt: without special tokens and without the space that the tokenizer puts in front."""
        joined = b"".join(self.token(index) for index in ids if index not in self.special)
        return joined.decode(errors="replace").removeprefix(" ")


@dataclass(slots=True)
class Probe:
    """What one look at the server found. error: why it is not ready."""

    ready: bool
    error: str | None = None
    status: ServerStatus | None = None
    inputs: frozenset[str] = frozenset()
    at: float = field(default_factory=time.monotonic)


class Backend:
    """Make it inside the running event loop."""

    def __init__(self, settings: Settings) -> None:
        self.client = AsyncClient(settings.triton, idle_timeout_s=settings.idle_timeout_s, tls=settings.tls)
        self._probe: Probe | None = None
        self._known: Probe | None = None  # the last one that was ready
        self._looking = asyncio.Lock()
        self._vocabulary: Vocabulary | None = None

    async def close(self) -> None:
        await self.client.close()

    async def probe(self) -> Probe:
        """Through the engine itself, as Triton stays "ready" with dead models. Not older than a second."""
        async with self._looking:
            if self._probe is None or time.monotonic() - self._probe.at > PROBE_AGE_S:
                self._probe = await self._look()
                if self._probe.ready:
                    self._known = self._probe
                else:
                    self.forget()
            return self._probe

    def forget(self) -> None:
        """The connection broke: what comes back may be another engine."""
        self._known = self._vocabulary = None

    async def prepare(self, job: Job) -> Job:
        """Checks a request against what is served. Raises ApiError: 503 while the server cannot tell."""
        known = self._known or await self.probe()
        if not known.ready or known.status is None:
            raise unavailable(f"the model server is not ready: {known.error}")
        for option, tensor in _OPTIONAL_INPUTS.items():
            if getattr(job.options, option) not in (None, ()) and tensor not in known.inputs:
                raise bad_request(f"{option} is not supported by this server", option, "unsupported_parameter")
        if job.whole_length:
            job = replace(job, options=replace(job.options, max_tokens=await self._rest_of(job.prompts[0], known)))
        return job

    async def vocabulary(self) -> Vocabulary:
        """Raises ApiError when the server does not tell."""
        if self._vocabulary is None:
            try:
                self._vocabulary = Vocabulary(*await self.client.vocabulary())
            except ServerError as error:
                if "vocabulary" in str(error):
                    raise bad_request("logprobs is not supported by this server", "logprobs") from None
                raise from_client_error(error) from None
        return self._vocabulary

    async def prompt_ids(self, prompt: Prompt) -> list[int]:
        return (
            prompt.ids if prompt.ids is not None else await self.client.tokenize(prompt.text, messages=prompt.messages)
        )

    async def _rest_of(self, prompt: Prompt, known: Probe) -> int:
        """How many tokens fit behind the prompt. When none does the server refuses the request with its own words."""
        limits: dict[str, Any] = known.status.limits if known.status else {}
        return max(1, int(limits.get("max_seq_len", 2048)) - len(await self.prompt_ids(prompt)))

    async def _look(self) -> Probe:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                status = await self.client.status()
                if not status.ready:
                    return Probe(False, "it is starting")
                return Probe(True, None, status, await self.client.input_names())
        except MixtralClientError as error:
            return Probe(False, from_client_error(error).message)
        except TimeoutError:
            return Probe(False, f"it did not answer within {PROBE_TIMEOUT_S:g} s")
