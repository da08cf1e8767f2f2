"""What routes do with bodies and answers: JSON read strictly and away from the loop, streams of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import StreamingResponse

from .answers import Refused
from .keys import EVERYBODY, Owner
from .server import Server

LARGE = 64 * 1024  # bytes from which on JSON is read in a thread
MAX_PARTS = 32  # of a form
PING = 15.0  # seconds


def server_of(request: Request) -> Server:
    """The server that a request has reached."""
    return request.app.state.server  # type: ignore[no-any-return]


def owner_of(request: Request) -> Owner:
    """Whose request it is, as the guard found."""
    return request.scope["state"].get("owner", EVERYBODY)  # type: ignore[no-any-return]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def parse(body: bytes) -> Any:
    """Strict JSON: no NaN, no infinity. Raises ValueError and RecursionError."""
    return json.loads(body, parse_constant=_no_number)


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused (422) for anything else."""
    body = await request.body()
    try:
        content = await run_in_threadpool(parse, body) if len(body) > LARGE else parse(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is not valid JSON") from None
    if not isinstance(content, dict):
        raise Refused(422, f"the body is a JSON {type(content).__name__}; send an object")
    return content


async def form_body(request: Request) -> FormData:
    """The form of a request. Raises Refused (422) where it is none, or has too many parts."""
    try:
        return await request.form(
            max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=server_of(request).options.max_body
        )
    except Exception:  # the parser's faults are of many kinds
        raise Refused(422, f"the body is not a multipart form of at most {MAX_PARTS} parts") from None


async def gone(request: Request) -> None:
    """Returns once the client of a request, whose body was read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def file_bytes(part: UploadFile | str) -> bytes:
    """What a form's file holds."""
    return part.encode() if isinstance(part, str) else await part.read()


def event(kind: str, data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n".encode("ascii")


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events, unbuffered by proxies, with a comment every 15 s so that nobody takes them for dead."""
    return StreamingResponse(
        _with_pings(events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _with_pings(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(events)
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(iterator))
            done, _ = await asyncio.wait({coming}, timeout=PING)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                chunk = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield chunk
    finally:
        if coming is not None:
            coming.cancel()
        close = getattr(iterator, "aclose", None)
        if close is not None and coming is None:
            await close()
