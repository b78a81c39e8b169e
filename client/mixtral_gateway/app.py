"""The gateway as an ASGI application."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from mixtral_gateway.access_log import AccessLog
from mixtral_gateway.backend import Backend
from mixtral_gateway.errors import no_such_model
from mixtral_gateway.frame import Frame
from mixtral_gateway.generate import Generate, Running
from mixtral_gateway.metrics import Metrics
from mixtral_gateway.settings import Settings

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Gateway:
    """The ASGI application. Streams go past Starlette, whose layers would take a share of every event.

    streams: applications by path. pages: the one for all other paths. running: the generations under way."""

    streams: Mapping[str, ASGIApp]
    pages: ASGIApp
    running: Running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.streams.get(scope.get("path", ""), self.pages)(scope, receive, send)


def create_app(settings: Settings, log: AccessLog | None = None) -> Gateway:
    """log: standard error by default."""
    metrics, running, started = Metrics(), Running(), int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Backend]]:
        backend = Backend(settings)
        try:
            yield {"backend": backend}
        finally:
            await backend.close()

    async def entry(name: str, request: Request) -> dict[str, Any]:
        known = {"id": name, "object": "model", "created": started, "owned_by": "mixtral-triton"}
        status = (await _backend(request).probe()).status
        length = (status.limits or {}).get("max_seq_len") if status else None
        return known if length is None else known | {"max_model_len": length}

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [await entry(name, request) for name in settings.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in settings.models:
            raise no_such_model(name)
        return _json(await entry(name, request))

    async def health(request: Request) -> Response:
        if running.draining:
            return _json({"status": "draining"}, 503)
        probe = await _backend(request).probe()
        if not probe.ready:
            return _json({"status": "unavailable", "reason": probe.error}, 503)
        return _json({"status": "ok"})

    async def live(request: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics_page(request: Request) -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    log = log or AccessLog()

    def around(app: ASGIApp) -> ASGIApp:
        framed: ASGIApp = Frame(app, settings, metrics, log)
        if settings.cors_origins:
            return CORSMiddleware(framed, settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        return framed

    pages = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/live", live),
            Route("/metrics", metrics_page),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        middleware=[Middleware(around)],
        exception_handlers={HTTPException: _reraise},
        lifespan=lifespan,
    )
    return Gateway(
        {
            "/v1/chat/completions": around(Generate("chat", settings, metrics, running)),
            "/v1/completions": around(Generate("completions", settings, metrics, running)),
        },
        pages,
        running,
    )


async def _reraise(request: Request, error: Exception) -> Response:
    raise error  # the frame makes OpenAI's error object of it


def _backend(request: Request) -> Backend:
    backend: Backend = request.state.backend
    return backend


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
