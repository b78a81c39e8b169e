"""The two endpoints that generate: one request from its body to the last byte of its answer."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mixtral_client import Chunk, MixtralClientError, Result, ServerUnreachable
from mixtral_client.idle_timer import IdleTimer
from mixtral_gateway.access_log import Record
from mixtral_gateway.answers import Answers, ChatAnswers, CompletionAnswers, check_finish
from mixtral_gateway.backend import Backend
from mixtral_gateway.body import ClientLeft, read_json
from mixtral_gateway.choices import run_choices
from mixtral_gateway.errors import ApiError, from_client_error, unavailable
from mixtral_gateway.fields import KNOWN, Endpoint
from mixtral_gateway.jobs import Job, read_job
from mixtral_gateway.metrics import Metrics
from mixtral_gateway.settings import Settings

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]
_log = logging.getLogger("mixtral_gateway")
_STOPPING = "the gateway is shutting down"


class Running:
    """The requests under way. `draining` refuses new ones; `abort` ends those that are left with an error."""

    def __init__(self) -> None:
        self.draining = False
        self.aborted = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self) -> None:
        self.aborted = True
        for task in self._tasks:
            task.cancel()


class Generate:
    """An ASGI application for one endpoint. Not a Starlette one, which would see a client leave only when it writes."""

    def __init__(self, endpoint: Endpoint, settings: Settings, metrics: Metrics, running: Running) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._metrics = metrics
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before anything was sent, ClientLeft when there is nobody any more."""
        if scope["method"] != "POST":
            raise HTTPException(405)
        if self._running.draining:
            raise unavailable(_STOPPING)
        body = await read_json(Headers(scope=scope), receive, self._settings)
        job = read_job(self._endpoint, body, self._settings)
        record: Record = scope["record"]
        record.stream, record.choices = job.stream, job.choices
        own = asyncio.current_task()
        assert own is not None
        reader = IdleTimer(self._settings.idle_timeout_s, own.cancel)
        exchange = _Exchange(job, scope["state"]["backend"], self._metrics, record, send, reader)
        leaving = asyncio.create_task(_cancel_when_left(receive, own))
        self._running.add(own)
        try:
            with self._metrics.running.track_inprogress():
                await exchange.run()
        except asyncio.CancelledError:
            own.uncancel()
            if leaving.done() or reader.expired:
                raise ClientLeft from None
            if not self._running.aborted:
                raise
            await exchange.fail(unavailable(_STOPPING))
        finally:
            leaving.cancel()
            reader.close()


async def _cancel_when_left(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


class _Exchange:
    """The answer to one request."""

    def __init__(
        self, job: Job, backend: Backend, metrics: Metrics, record: Record, send: Send, reader: IdleTimer
    ) -> None:
        """reader: runs while the client does not take what is sent."""
        self._job = job
        self._backend = backend
        self._metrics = metrics
        self._record = record
        self._send_message = send
        self._reader = reader
        self._begun = time.perf_counter()
        self._started = False  # whether the client has a status

    async def run(self) -> None:
        try:
            job = await self._backend.prepare(self._job)
            answers = await self._answers(job)
            if job.stream:
                await self._stream(job, answers)
            else:
                await self._whole(job, answers)
        except MixtralClientError as error:
            if isinstance(error, ServerUnreachable):
                self._backend.forget()
            refusal = from_client_error(error, KNOWN)
            if refusal.status >= 500:
                _log.warning("request %s: %s: %s", self._record.request_id, type(error).__name__, error)
            await self.fail(refusal)
        except ApiError as error:
            await self.fail(error)

    async def fail(self, error: ApiError) -> None:
        """As a status where that is still possible, else as the stream's last event."""
        if not self._started:
            raise error
        self._record.error = error.code or error.kind
        await self._send(error.event(), more=False)

    async def _answers(self, job: Job) -> Answers:
        kind = ChatAnswers if job.endpoint == "chat" else CompletionAnswers
        vocabulary, ids, texts = None, [], []
        if job.alternatives is not None or job.scores_only:
            vocabulary = await self._backend.vocabulary()
            if job.echo:
                ids = [await self._backend.prompt_ids(prompt) for prompt in job.prompts]
                pairs = zip(job.prompts, ids, strict=True)
                texts = [vocabulary.text(own) if prompt.text is None else prompt.text for prompt, own in pairs]
        shown = vocabulary if job.alternatives is not None else None
        return kind(job, self._record.request_id, int(time.time()), shown, ids, texts)

    async def _stream(self, job: Job, answers: Answers) -> None:
        async with contextlib.aclosing(run_choices(self._backend.client, job, self._record.request_id)) as chunks:
            async for choice, chunk in chunks:
                self._seen(answers, choice, chunk)
                event = answers.event(choice, chunk)
                if not self._started:
                    await self._start(200, _STREAM_HEADERS)
                    event = answers.begin() + event
                if event:
                    await self._send(event)
        await self._send(answers.end(), more=False)

    async def _whole(self, job: Job, answers: Answers) -> None:
        parts: list[list[Chunk]] = [[] for _ in range(job.choices)]
        async with contextlib.aclosing(run_choices(self._backend.client, job, self._record.request_id)) as chunks:
            async for choice, chunk in chunks:
                self._seen(answers, choice, chunk)
                parts[choice].append(chunk)
        body = answers.whole([Result.join(part) for part in parts])
        await self._start(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))])
        await self._send(body, more=False)

    def _seen(self, answers: Answers, choice: int, chunk: Chunk) -> None:
        self._metrics.events += 1
        if self._record.ttft_s is None:
            self._record.ttft_s = time.perf_counter() - self._begun
            self._metrics.first.observe(self._record.ttft_s)
        if chunk.usage is None:
            return
        if error := check_finish(chunk.finish_reason):
            raise error
        answers.usage.add(choice, chunk.usage.num_input_tokens, chunk.usage.num_output_tokens)
        self._record.input_tokens = answers.usage.input_tokens
        self._record.output_tokens = answers.usage.output_tokens

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send_message({"type": "http.response.start", "status": status, "headers": headers})

    async def _send(self, body: bytes, *, more: bool = True) -> None:
        """Waits while the reader lags; one that takes nothing for the idle timeout counts as gone."""
        self._reader.begin()
        await self._send_message({"type": "http.response.body", "body": body, "more_body": more})
        self._reader.end()
