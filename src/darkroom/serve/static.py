"""The page's files, as the folder `page` beside this holds them: built from /page of the repository and kept in git, so
that nobody needs node to install or to serve them (docs/serve-page.md).
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .answers import Refused

PAGE = Path(__file__).with_name("page")
# What a build may hold. A file of another kind is not served.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
MISSING = "the page is not in this installation; the API is all here (docs/serve.md)\n"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page, read and compressed once."""

    kind: str
    plain: bytes
    packed: bytes
    tag: str


@cache
def files(folder: Path = PAGE) -> dict[str, File]:
    """All files of the page by their paths below the folder; none where the page was not built."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix in TYPES and path.is_file():
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = File(TYPES[path.suffix], data, gzip.compress(data, 9), tag)
    return found


def _answer(request: Request, file: File, keep: str) -> Response:
    headers = {"ETag": file.tag, "Cache-Control": keep, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    packed = "gzip" in request.headers.get("accept-encoding", "") and len(file.packed) < len(file.plain)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packed else file.plain, media_type=file.kind, headers=headers)


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself: asked for anew each time, since it names the files of its own version."""
    file = files(PAGE).get("index.html")
    return PlainTextResponse(MISSING, 404) if file is None else _answer(request, file, "no-cache")


@router.get("/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    """A file that the page names by its hash: what has this name never changes."""
    file = files(PAGE).get(f"assets/{name}")
    if file is None:
        raise Refused(404, "the page has no such file")
    return _answer(request, file, "public, max-age=31536000, immutable")
