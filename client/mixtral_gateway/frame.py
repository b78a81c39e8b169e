"""What every request goes through: its id, its key, its error object, its line in the log, its metrics."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixtral_gateway.access_log import AccessLog, Record
from mixtral_gateway.body import ClientLeft, discard_body
from mixtral_gateway.errors import CLIENT_LEFT, ApiError, internal
from mixtral_gateway.metrics import Metrics
from mixtral_gateway.settings import Settings

ROUTES = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/live", "/metrics")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}$")
_PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = [
    (b"content-security-policy", _PAGE_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_log = logging.getLogger("mixtral_gateway")


class Frame:
    """ASGI middleware. Everything below /v1 asks for a key when there are any."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, log: AccessLog) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        record = Record(_request_id(headers), scope["method"], _route(scope["path"]), (scope["client"] or (None,))[0])
        scope["record"] = record
        framed = _with_headers(send, record)
        try:
            try:
                await self._authorised(scope, headers, receive, record)
                await self._app(scope, receive, framed)
            except ApiError as error:
                await _refuse(error, framed, record)
            except HTTPException as error:
                await _refuse(_of_status(error.status_code, record.route), framed, record)
            except ClientLeft:
                record.status, record.error = CLIENT_LEFT, "client_left"
            except Exception:
                _log.exception("request %s failed", record.request_id)
                if record.status:
                    raise  # uvicorn breaks the connection off: what was sent is not whole
                await _refuse(internal(), framed, record)
        finally:
            record.duration_s = time.perf_counter() - begun
            self._count(record)
            self._log.write(record)

    async def _authorised(self, scope: Scope, headers: Headers, receive: Receive, record: Record) -> None:
        keys = self._settings.keys
        if keys is None or not scope["path"].startswith("/v1/"):
            return
        record.key = keys.owner(headers.get("authorization"))
        if record.key is None:
            await discard_body(receive, self._settings)
            what = "is wrong" if headers.get("authorization") else "is missing; send it as Authorization: Bearer KEY"
            raise ApiError(401, f"the API key {what}", code="invalid_api_key")

    def _count(self, record: Record) -> None:
        self._metrics.requests.labels(record.route, record.status).inc()
        self._metrics.duration.labels(record.route).observe(record.duration_s)
        for direction, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens:
                self._metrics.tokens.labels(direction).inc(tokens)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else uuid.uuid4().hex


def _route(path: str) -> str:
    """One of few, so that neither log nor metrics hold what a caller made up."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ROUTES else "other"


def _with_headers(send: Send, record: Record) -> Send:
    added = [(b"x-request-id", record.request_id.encode()), *_SECURITY_HEADERS]

    async def framed(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return framed


def _of_status(status: int, route: str) -> ApiError:
    if status == 405 and route not in ROUTES:
        status = 404  # said by the page's files, which take GET alone whether there is one at the address or not
    words = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return ApiError(
        status, words.get(status, "the request cannot be served"), code="not_found" if status == 404 else None
    )


async def _refuse(error: ApiError, send: Send, record: Record) -> None:
    record.error = error.code or error.kind
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
