"""Reading a request's JSON body within limits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from mixtral_gateway.errors import ApiError, bad_request
from mixtral_gateway.settings import Settings

_DISCARDED = 16  # times the limit is still taken in and thrown away, so that the sender reads the refusal


class ClientLeft(Exception):
    """The connection ended; there is nobody to answer."""


async def read_json(headers: Headers, receive: Receive, settings: Settings) -> Any:
    """Raises ApiError for a body of another type, a long, slow or malformed one; ClientLeft when it breaks off."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages out: for any other type a browser would not ask the gateway first (CORS).
        await discard_body(receive, settings)
        message = f"the content type is {kind[:100] or 'missing'}, it must be application/json"
        raise ApiError(415, message, code="unsupported_media_type")
    parts, body = _parts(receive), bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in parts:
                body += part
                if len(body) > settings.max_body_bytes:
                    break
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="request_timeout") from None
    if len(body) > settings.max_body_bytes:
        await _discard(parts, settings)
        message = f"the body is longer than the limit of {settings.max_body_bytes} bytes"
        raise ApiError(413, message, code="request_too_large")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: {error.msg} at {error.pos}", code="invalid_json") from None


async def discard_body(receive: Receive, settings: Settings) -> None:
    """Takes in what a refused request sends: one that gets its answer before it is sent whole may miss it."""
    await _discard(_parts(receive), settings)


async def _discard(parts: AsyncIterator[bytes], settings: Settings) -> None:
    left = _DISCARDED * settings.max_body_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.body_timeout_s):
            async for part in parts:
                left -= len(part)
                if left < 0:
                    return


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        yield message.get("body", b"")
        more = message.get("more_body", False)
