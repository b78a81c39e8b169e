"""The answers of both endpoints, streamed and whole.

Streamed events are joined from bytes that are made once for each request: per event only the text is encoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import orjson

from mixtral_client import Chunk, Result
from mixtral_gateway.backend import Vocabulary
from mixtral_gateway.errors import ApiError, internal, timed_out, unavailable
from mixtral_gateway.jobs import Job
from mixtral_gateway.log_probs import CompletionLogProbs, chat_log_probs

DONE = b"data: [DONE]\n\n"


def check_finish(reason: str | None) -> ApiError | None:
    """The error that stands for an end which OpenAI has no word for."""
    if reason in ("stop", "length"):
        return None
    if reason == "timeout":
        return timed_out()
    return unavailable("the generation was cancelled on the server") if reason == "cancelled" else internal()


class UsageCount:
    """Tokens over all choices; a prompt that is answered several times counts once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._prompts: dict[int, int] = {}
        self.output_tokens = 0

    @property
    def input_tokens(self) -> int:
        return sum(self._prompts.values())

    def add(self, choice: int, input_tokens: int | None, output_tokens: int | None) -> None:
        self._prompts[choice // self._job.n] = input_tokens or 0
        self.output_tokens += 0 if self._job.scores_only else output_tokens or 0

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }


class Answers(ABC):
    """One request's answers. prompt_ids, prompt_texts: of the prompts, where they are shown and known."""

    prefix: str
    whole_object: str
    event_object: str

    def __init__(
        self,
        job: Job,
        request_id: str,
        created: int,
        vocabulary: Vocabulary | None,
        prompt_ids: Sequence[Sequence[int]] = (),
        prompt_texts: Sequence[str] = (),
    ) -> None:
        """vocabulary: None when no log probabilities are asked for."""
        self.job = job
        self.usage = UsageCount(job)
        self._texts = prompt_texts
        self._vocabulary = vocabulary
        self._head = {"id": self.prefix + request_id, "created": created, "model": job.model}
        event = orjson.dumps({"id": self._head["id"], "object": self.event_object} | self._head)
        self._event_head = b"data: " + event[:-1] + b',"choices":['
        self._event_tail = b'],"usage":null}\n\n' if job.include_usage else b"]}\n\n"
        self._completion_log_probs = [
            CompletionLogProbs(vocabulary, prompt_ids[choice // job.n] if prompt_ids else None, job.alternatives or 0)
            for choice in range(job.choices)
            if vocabulary is not None
        ]

    @abstractmethod
    def begin(self) -> bytes:
        """What comes before the first token."""

    @abstractmethod
    def event(self, choice: int, chunk: Chunk) -> bytes:
        """A chunk as an event; empty when it shows nothing. The last chunk of a choice also ends it."""

    @abstractmethod
    def choice(self, index: int, result: Result) -> dict[str, Any]:
        """A whole choice."""

    def end(self) -> bytes:
        """What comes after the last token."""
        if not self.job.include_usage:
            return DONE
        head = {"id": self._head["id"], "object": self.event_object} | self._head
        return b"data: " + orjson.dumps(head | {"choices": [], "usage": self.usage.to_json()}) + b"\n\n" + DONE

    def whole(self, results: Sequence[Result]) -> bytes:
        choices = [self.choice(index, result) for index, result in enumerate(results)]
        head = {"id": self._head["id"], "object": self.whole_object} | self._head
        return orjson.dumps(head | {"choices": choices, "usage": self.usage.to_json()})

    def finish_reason(self, reason: str | None) -> str | None:
        return "length" if self.job.scores_only else reason


class ChatAnswers(Answers):
    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    event_object = "chat.completion.chunk"

    def begin(self) -> bytes:
        return b"".join(
            self._event(choice, b'{"role":"assistant","content":"","refusal":null}', b"null", b"null")
            for choice in range(self.job.choices)
        )

    def event(self, choice: int, chunk: Chunk) -> bytes:
        log_probs = b"null"
        if self._vocabulary is not None and chunk.token_ids:
            log_probs = orjson.dumps(chat_log_probs(chunk, self._vocabulary))
        event = b""
        if chunk.text or log_probs != b"null":
            event = self._event(choice, b'{"content":' + orjson.dumps(chunk.text) + b"}", log_probs, b"null")
        if chunk.usage is not None:
            event += self._event(choice, b"{}", b"null", orjson.dumps(self.finish_reason(chunk.finish_reason)))
        return event

    def _event(self, choice: int, delta: bytes, log_probs: bytes, reason: bytes) -> bytes:
        body = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (choice, delta, log_probs, reason)
        return self._event_head + body + self._event_tail

    def choice(self, index: int, result: Result) -> dict[str, Any]:
        chunk = _one_chunk(result)
        return {
            "index": index,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": None if self._vocabulary is None else chat_log_probs(chunk, self._vocabulary),
            "finish_reason": self.finish_reason(result.finish_reason),
        }


class CompletionAnswers(Answers):
    prefix = "cmpl-"
    whole_object = event_object = "text_completion"

    def begin(self) -> bytes:
        return b""

    def event(self, choice: int, chunk: Chunk) -> bytes:
        text, log_probs = self._shown(choice, chunk)
        reason = self.finish_reason(chunk.finish_reason) if chunk.usage is not None else None
        if not (text or reason or (log_probs and log_probs["tokens"])):
            return b""
        body = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (
            choice,
            orjson.dumps(text),
            b"null" if log_probs is None else orjson.dumps(log_probs),
            b"null" if reason is None else orjson.dumps(reason),
        )
        return self._event_head + body + self._event_tail

    def choice(self, index: int, result: Result) -> dict[str, Any]:
        text, log_probs = self._shown(index, _one_chunk(result))
        reason = self.finish_reason(result.finish_reason)
        return {"index": index, "text": text, "logprobs": log_probs, "finish_reason": reason}

    def _shown(self, choice: int, chunk: Chunk) -> tuple[str, dict[str, Any] | None]:
        log_probs = None
        if self._completion_log_probs:
            log_probs = self._completion_log_probs[choice].push(chunk, prompt_only=self.job.scores_only)
        if not self.job.scores_only:
            return chunk.text, log_probs
        return self._texts[choice // self.job.n] if chunk.usage is not None else "", log_probs


def _one_chunk(result: Result) -> Chunk:
    return Chunk(
        request_id=result.request_id,
        text=result.text,
        token_ids=result.token_ids,
        log_probs=result.log_probs,
        top_log_probs=result.top_log_probs,
        prompt_log_probs=result.prompt_log_probs,
        finish_reason=result.finish_reason,
        usage=result.usage,
    )
