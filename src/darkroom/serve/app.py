"""The application: all routes behind the guard, and every error in the form of its path's dialect."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from .. import __version__
from ..errors import Error
from . import a1111, openai, own, queue, static, sweeps
from .answers import Json, Refused, refusal
from .guard import Guard
from .queue import Conflict, TooMuch
from .server import Closed, Gone, Server
from .store import StoreDown, StoreFull

log = logging.getLogger(__name__)

# Which status an error's class means. The first that fits counts.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooMuch, 429),
    (Conflict, 409),
    (StoreFull, 507),
    (StoreDown, 503),
    (Closed, 503),
    (Gone, 499),
    (Error, 422),
)


def bare_app() -> FastAPI:
    """All routes, of no server yet: enough to describe them."""
    app = FastAPI(title="Darkroom", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(own.router)
    app.include_router(sweeps.router)
    app.include_router(openai.router, prefix="/v1")
    app.include_router(openai.router, include_in_schema=False)  # some clients are given an address without /v1
    app.include_router(openai.files)
    for router in a1111.ROUTERS:
        app.include_router(router)
    app.include_router(static.router)
    app.add_api_route("/healthz", healthz, include_in_schema=False)
    app.add_api_route("/readyz", readyz, include_in_schema=False)
    app.add_api_route("/metrics", metrics, include_in_schema=False)
    return app


def make_app(server: Server) -> ASGIApp:
    """The ASGI application of a server."""
    app = bare_app()
    app.state.server = server
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refused: _refused,
        RequestValidationError: _invalid,
        HTTPException: _http,
        Exception: _failed,
        **{kind: _told for kind, _ in _STATUS},
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    return Guard(app, server)


async def healthz() -> Response:
    """The event loop turns."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """The database answers, the disk takes files, an engine has a model: 200, else 503 and what is missing."""
    server: Server = request.app.state.server
    missing = []
    try:
        await server.store.read(queue.counts)
    except Error as error:
        missing.append(str(error))
    if server.dispatcher.full:
        missing.append("the disk is full")
    if not server.dispatcher.ready:
        missing.append("no engine has a model yet")
    if server.closing.is_set():
        missing.append("the server is stopping")
    return Json({"ready": not missing, "missing": missing}, 503 if missing else 200)


async def metrics(request: Request) -> Response:
    """Prometheus's text."""
    server: Server = request.app.state.server
    counts = await server.store.read(queue.counts)
    for state in own.STATES:
        server.metrics.jobs.labels(state).set(counts.get(state, 0))
    server.metrics.queue_age.set(await server.store.read(queue.oldest))
    server.metrics.disk.set(await server.retention.disk())
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


# --- errors


async def _refused(request: Request, error: Refused) -> Response:
    return refusal(request.url.path, error.status, error.sentence, **error.told)


async def _told(request: Request, error: Exception) -> Response:
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    sentence = str(error) or "the server is stopping; try again in a moment"
    headers = {}
    if isinstance(error, TooMuch):
        headers["Retry-After"] = str(max(1, min(120, round(error.seconds))))
    if isinstance(error, Closed | StoreDown):
        headers["Retry-After"] = "5"
    return refusal(request.url.path, status, sentence, headers=headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """A parameter of the wrong kind. The sentence never repeats what was sent."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    return refusal(request.url.path, 422, f"{field or 'the request'}: {first.get('msg', 'is wrong')}", field=field)


async def _http(request: Request, error: HTTPException) -> Response:
    sentence = {404: "there is nothing here", 405: "this method is not for this path"}.get(
        error.status_code, str(error.detail)
    )
    return refusal(request.url.path, error.status_code, sentence, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a route failed: %s", error, exc_info=error)
    return refusal(request.url.path, 500, "something went wrong inside; the server's log has it")
